#!/usr/bin/env bash
# Installs the package and what it needs into the environment that Snakemake made.
set -euo pipefail
python -m pip install "${KPROBA_SOURCE:-$(git rev-parse --show-toplevel)}"
