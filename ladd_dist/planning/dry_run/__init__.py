"""A start and an iteration of a run on a GPU that is not there: the step's own code on tensors without data."""
