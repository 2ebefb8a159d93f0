#!/usr/bin/env bash
# All that this project can check and measure on one GPU, in one go. See gpu.md.
#
#   benchmarks/on_gpu.sh [--dry] [PART ..]
#
# Parts: tests, benchmarks, chain; without any, all in this order. With --dry, nothing is
# run: it only checks, without a GPU, that every command can start.
#
# Variables: PYTHON (a Python with torch), WHEELS (a folder of what it lacks), OUT (gets
# all output), and the seconds of each part: TESTS, BENCHMARKS, CHAIN. The exit status
# is 0, or the sum of 1 (tests), 2 (benchmarks) and 4 (chain) that failed; 8: no set-up.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
out=${OUT:-$root/results/gpu}
seconds_tests=${TESTS:-300} seconds_benchmarks=${BENCHMARKS:-600} seconds_chain=${CHAIN:-180}
dry='' parts=()
for word in "$@"; do
  case $word in
    --dry) dry=yes ;;
    tests | benchmarks | chain) parts+=("$word") ;;
    *) echo "Expected --dry, tests, benchmarks or chain, but got $word." >&2; exit 8 ;;
  esac
done
((${#parts[@]})) || parts=(tests benchmarks chain)
python=$(command -v "${PYTHON:-python3}") || { echo "No ${PYTHON:-python3} here." >&2; exit 8; }
wheels=''
if [[ -n ${WHEELS:-} ]]; then wheels=$(cd "$WHEELS" && pwd -P) || exit 8; fi
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
mkdir -p "$out" || exit 8
out=$(cd "$out" && pwd -P)
scratch=$(mktemp -d) || exit 8
trap 'rm -rf "$scratch"' EXIT
cd "$root" || exit 8

# Rules look for these on the path. The package may not be installed: it is found here.
mkdir "$scratch/bin"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$python" >"$scratch/bin/python"
printf '#!/bin/sh\nexec "%s" -m kproba.runtime.launch "$@"\n' "$python" \
  >"$scratch/bin/kproba-launch"
chmod +x "$scratch/bin/python" "$scratch/bin/kproba-launch"
PATH="$scratch/bin:$(dirname "$python"):$PATH"
export PATH PYTHONUNBUFFERED=1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [[ -n $wheels ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --target "$scratch/site" "$wheels"/*.whl || exit 8
  PYTHONPATH="$scratch/site:$PYTHONPATH" PATH="$scratch/site/bin:$PATH"
fi

# One card under two names: two jobs compute on it side by side.
if [[ -z $dry ]]; then
  card=$(nvidia-smi --query-gpu=uuid --format=csv,noheader | head -n 1)
  [[ $card == GPU-* ]] || { echo "Expected a GPU, but nvidia-smi names none." >&2; exit 8; }
  names="0,${card:0:12}"
fi

limited() { # SECONDS LOG COMMAND ..: with a limit, and to a log and the screen
  local seconds=$1 log=$2
  shift 2
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$out/$log"
}

run_tests() {
  local words=(-m pytest tests/test_gpu.py -m "not gpus" -p no:cacheprovider)
  if [[ -n $dry ]]; then
    limited 120 tests.log "$python" "${words[@]}" --collect-only --quiet
    return
  fi
  "$python" -c 'import xdist' 2>/dev/null && words+=(-n 3)
  limited "$seconds_tests" tests.log "$python" "${words[@]}" --durations=10
}

run_benchmarks() {
  local words=(-m benchmarks.gpu)
  [[ -z $dry ]] || words+=(--small --device cpu --workers 2)
  limited "$seconds_benchmarks" benchmarks.md "$python" "${words[@]}"
}

run_chain() {
  local words=(-m snakemake --snakefile "$root/Snakefile" --directory "$scratch/chain")
  mkdir -p "$scratch/chain"
  cp config/test.yaml "$scratch/chain/config.yaml" || return
  echo "  gpus: 1" >>"$scratch/chain/config.yaml" # the file ends with `compute`
  words+=(--configfile "$scratch/chain/config.yaml" --cores 4 --resources gpu=2)
  if [[ -n $dry ]]; then
    limited 120 chain.log "$python" "${words[@]}" --dry-run --quiet
    return
  fi
  CUDA_VISIBLE_DEVICES=$names limited "$seconds_chain" chain.log "$python" "${words[@]}"
  local status=$?
  cp "$scratch/chain/results/summary.csv" "$out/" 2>/dev/null
  return $status
}

failed=0 number=1
for part in tests benchmarks chain; do
  if [[ " ${parts[*]} " == *" $part "* ]]; then
    echo "== $part"
    started=$SECONDS
    if "run_$part"; then state=done; else state=failed failed=$((failed + number)); fi
    echo "== $part: $state after $((SECONDS - started)) s" | tee -a "$out/summary.log"
  fi
  number=$((2 * number))
done
exit "$failed"
