"""A run's jobs, whatever schedules them: which there are, what each needs of a cluster, and what it cannot use.

Nothing here imports torch: it runs wherever jobs are submitted from.
"""
