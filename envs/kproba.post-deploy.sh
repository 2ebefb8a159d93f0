#!/usr/bin/env bash
# Installs the package into the environment that Snakemake made. The workflow sets
# KPROBA_SOURCE: the folder of the clone, or the installed release ("kproba==0.2.0").
# A clone is installed in editable mode, so that the jobs run the code of the checkout.
set -euo pipefail
source="${KPROBA_SOURCE:-$PWD}"
if [ -d "$source" ]; then
  python -m pip install --constraint "$source/constraints.txt" --editable "$source"
else
  python -m pip install "$source"
fi
