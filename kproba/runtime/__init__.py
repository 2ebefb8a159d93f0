"""How a job runs: start, processes, GPUs, locks, logs and files."""
