"""The mathematics of rectified flow and the values that carry it, without a network."""
