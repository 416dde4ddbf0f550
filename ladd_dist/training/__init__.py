"""The loop and what looks at it: logging, tracking, previews, profiles."""
