"""How a job runs: start, processes, GPUs, locks, logs, and how it writes files."""
