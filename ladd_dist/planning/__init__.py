"""Before anything is loaded or paid for: what fits together, and what a run takes: memory, traffic, time."""
