"""Whether two versions of the code make the same numbers, and what a step costs."""
