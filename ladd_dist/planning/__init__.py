"""Before anything large is loaded: what fits together, and what it will take in memory and traffic."""
