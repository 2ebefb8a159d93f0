# make demo    set up, run the embedded example, print the table and where the report is
# make test    set up, run the tests
# make test-slurm  set up, run the tests that need a SLURM with two GPUs (or pretended ones)
# make lint    set up, check format, style and types
# make bench   set up, measure benchmarks/README.md again (half an hour, idle machine)
# Variables count on the command line of make alone, such as `make PYTHON=python3.12`.
# A shell may export VENV or PYTHON for something else.
PYTHON = python3
VENV = .venv
CORES = all
PIP_FLAGS = --quiet --disable-pip-version-check
# Where the tests find real pictures, if there are any: see CONTRIBUTING.md.
PYTEST_FLAGS =
SHELL := /bin/bash

# Snakemake hands the path of its Python to a shell as it is, so this path must have no
# spaces, braces or other characters with a meaning. Where the path of this folder has
# some, the environment is in the user's cache, and .venv is a link to it.
UNSAFE := [^A-Za-z0-9_./+@%,=~-]
PLACE := $(shell if pwd -P | LC_ALL=C grep -q '$(UNSAFE)'; then \
  printf '%s' "$${XDG_CACHE_HOME:-$$HOME/.cache}/kproba/$$(pwd -P | sha256sum | cut -c1-16)"; fi)
REAL := $(if $(and $(PLACE),$(filter .venv,$(VENV))),$(PLACE),$(VENV))
ifneq ($(if $(REAL),$(shell printf '%s' '$(REAL)' | LC_ALL=C grep '$(UNSAFE)'),none),)
  $(error Expected an environment in a path of letters, digits and _./+@%,=~-, but got '$(REAL)'. Choose another place: make VENV=/tmp/kproba-venv)
endif

# Commands of the environment come first, so that rules find torchrun and python.
BIN := $(if $(filter /%,$(REAL)),$(REAL),./$(REAL))/bin
ACTIVE = export PATH="$$(cd $(BIN) && pwd -P):$$PATH";

.PHONY: demo test test-slurm lint bench format setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Expected Python 3.11 or newer as '$(PYTHON)'. Install it, or name it: make PYTHON=python3.12"; exit 1; }
	@if [ -d $(REAL) ] && [ ! -e $(REAL)/pyvenv.cfg ] && [ -n "$$(ls -A $(REAL))" ]; then \
	  echo "Expected a virtual environment or nothing in $(REAL), but it holds other files. Choose another place: make VENV=.."; exit 1; fi
	@test -x $(BIN)/python || { mkdir -p $(dir $(REAL)) && $(PYTHON) -m venv $(REAL); } || \
	  { echo "Could not make a virtual environment. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@if [ $(REAL) != $(VENV) ]; then ln -sfn $(REAL) $(VENV); echo "$(VENV) is a link to $(REAL)"; fi
	@echo "Installing into $(REAL) (PyTorch is large: this takes minutes the first time)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

# One demo at a time: so a lock that a killed Snakemake left behind may be removed.
demo: setup
	@mkdir -p .snakemake
	@$(ACTIVE) flock --nonblock .snakemake/demo.lock bash -c '\
	  snakemake --unlock --quiet all 2>/dev/null; \
	  snakemake --cores $(CORES)' \
	  || { echo "The demo did not finish; the reason stands above. (Is another one running?)"; exit 1; }
	@echo
	@$(BIN)/python -m kproba.results.tables results/summary.csv
	@echo
	@echo "Report: $$PWD/results/report.html"

test: setup
	$(ACTIVE) python -m pytest $(PYTEST_FLAGS)

test-slurm: setup
	$(ACTIVE) KPROBA_TEST_SLURM=1 python -m pytest $(PYTEST_FLAGS) tests/test_slurm.py

lint: setup
	$(ACTIVE) ruff check .
	$(ACTIVE) ruff format --check .
	$(ACTIVE) snakefmt --check Snakefile workflow
	$(ACTIVE) mypy
	$(ACTIVE) snakemake --lint

bench: setup
	$(ACTIVE) OMP_WAIT_POLICY=passive python -m benchmarks

format: setup
	$(ACTIVE) ruff check --fix .
	$(ACTIVE) ruff format .
	$(ACTIVE) snakefmt Snakefile workflow

clean:
	rm -rf results .snakemake
