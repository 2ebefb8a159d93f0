"""Benchmarks, that is, measurements of time and memory: python -m benchmarks."""

import os

# PyTorch reads it when it is imported: before any module of this package imports it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
