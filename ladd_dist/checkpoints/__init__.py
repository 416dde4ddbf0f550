"""A run on disk: written while it trains, read back at any world size, opened as a student, exported."""
