#!/usr/bin/env bash
# Installs the package, with the tested versions, into the environment Snakemake made.
# Snakemake runs this in the folder where snakemake was called; name the checkout if
# that is another one: KPROBA_SOURCE=/path/to/kproba snakemake ...
set -euo pipefail
source="${KPROBA_SOURCE:-$PWD}"
python -m pip install --constraint "$source/constraints.txt" "$source"
