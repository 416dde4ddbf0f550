"""How the processes of a job live and end: signals, requests to all ranks, dead and hanging ranks, exit codes."""
