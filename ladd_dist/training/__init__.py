"""The loop and what looks at it: logging, tracking, hooks, previews, profiles."""
