"""A run as Slurm jobs: the cluster's description, the scripts rendered from it, and what becomes of each attempt.

Nothing here imports torch: it runs on login nodes and in batch scripts.
"""
