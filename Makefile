# make demo    set up, run the embedded example, print the table and where the report is
# make test    set up, run the tests
# make test-slurm  set up, run the tests that need a SLURM with two GPUs (or pretended ones)
# make lint    set up, check format, style and types
# make bench   set up, measure benchmarks/README.md again (half an hour, idle machine)
PYTHON ?= python3
VENV ?= .venv
CORES ?= all
PIP_FLAGS ?= --quiet --disable-pip-version-check
# Where the tests find real pictures, if there are any: see CONTRIBUTING.md.
PYTEST_FLAGS ?=

BIN := $(VENV)/bin
# Commands of the environment come first, so that rules find torchrun and python.
export PATH := $(abspath $(BIN)):$(PATH)
SHELL := /bin/bash

.PHONY: demo test test-slurm lint bench format setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Expected Python 3.11 or newer as '$(PYTHON)'. Install it, or name it: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Could not make a virtual environment. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (PyTorch is large: this takes minutes the first time)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

# One demo at a time: so a lock that a killed Snakemake left behind may be removed.
demo: setup
	@mkdir -p .snakemake
	@flock --nonblock .snakemake/demo.lock bash -c '\
	  snakemake --unlock --quiet all 2>/dev/null; \
	  snakemake --cores $(CORES)' \
	  || { echo "The demo did not finish; the reason stands above. (Is another one running?)"; exit 1; }
	@echo
	@python -m kproba.results.tables results/summary.csv
	@echo
	@echo "Report: $(abspath results/report.html)"

test: setup
	python -m pytest $(PYTEST_FLAGS)

test-slurm: setup
	KPROBA_TEST_SLURM=1 python -m pytest $(PYTEST_FLAGS) tests/test_slurm.py

lint: setup
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy
	snakemake --lint

bench: setup
	OMP_WAIT_POLICY=passive python -m benchmarks

format: setup
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

clean:
	rm -rf results .snakemake
