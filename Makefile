# make demo        set up, run the embedded example, print the results and the report's path
# make test        set up for developers, run the tests
# make test-slurm  set up for developers, run the tests that need SLURM with two (fake) GPUs
# make lint        set up for developers, check format, style and types
# make docs        set up for developers, build the website; dead links are errors
# make package     set up for developers, build and check wheel and source archive
# make bench       set up for developers, run all benchmarks (half an hour, idle machine)
# make setup       install what users need
# make setup-dev   install the tools of developers, too
# Set variables on the command line of make, such as `make PYTHON=python3.12`. Variables
# of the shell are ignored, because it may use VENV or PYTHON for something else.
PYTHON = python3
VENV = .venv
CORES = all
PIP_FLAGS = --quiet --disable-pip-version-check
# Where the tests find real pictures, if there are any: see CONTRIBUTING.md.
PYTEST_FLAGS =
SHELL := /bin/bash

# Snakemake passes the path of its Python to a shell without quotes. So this path must not
# have spaces, braces or other special characters. If the path of this folder has any, the
# environment is created in the user's cache, and .venv is a link to it.
UNSAFE := [^A-Za-z0-9_./+@%,=~-]
PLACE := $(shell if pwd -P | LC_ALL=C grep -q '$(UNSAFE)'; then \
  printf '%s' "$${XDG_CACHE_HOME:-$$HOME/.cache}/kproba/$$(pwd -P | sha256sum | cut -c1-16)"; fi)
REAL := $(if $(and $(PLACE),$(filter .venv,$(VENV))),$(PLACE),$(VENV))
ifneq ($(if $(REAL),$(shell printf '%s' '$(REAL)' | LC_ALL=C grep '$(UNSAFE)'),none),)
  $(error Expected an environment in a path of letters, digits and _./+@%,=~-, but got '$(REAL)'. Choose another folder: make VENV=/tmp/kproba-venv)
endif

# Commands of the environment come first, so that rules find torchrun and python.
BIN := $(if $(filter /%,$(REAL)),$(REAL),./$(REAL))/bin
ACTIVE = export PATH="$$(cd $(BIN) && pwd -P):$$PATH";

.PHONY: demo test test-slurm lint docs package bench format setup setup-dev clean

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

INSTALL = $(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Expected Python 3.11 or newer as '$(PYTHON)'. Install it, or name it: make PYTHON=python3.12"; exit 1; }
	@if [ -d $(REAL) ] && [ ! -e $(REAL)/pyvenv.cfg ] && [ -n "$$(ls -A $(REAL))" ]; then \
	  echo "Expected a virtual environment or nothing in $(REAL), but it contains other files. Choose another folder: make VENV=.."; exit 1; fi
	@test -x $(BIN)/python || { mkdir -p $(dir $(REAL)) && $(PYTHON) -m venv $(REAL); } || \
	  { echo "Could not create a virtual environment. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@if [ $(REAL) != $(VENV) ]; then ln -sfn $(REAL) $(VENV); echo "$(VENV) is a link to $(REAL)"; fi
	@echo "Installing into $(REAL) (this takes minutes the first time, because PyTorch is large)"
	@$(INSTALL) .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "Installing the tools for developers into $(REAL)"
	@$(INSTALL) '.[dev]'
	@touch $@

# Only one demo runs at a time, so the lock of a killed Snakemake can be removed safely.
demo: setup
	@mkdir -p .snakemake
	@$(ACTIVE) flock --nonblock .snakemake/demo.lock bash -c '\
	  snakemake --unlock --quiet all 2>/dev/null; \
	  snakemake --cores $(CORES)' \
	  || { echo "The demo did not finish. The reason is printed above. (Is another demo running?)"; exit 1; }
	@echo
	@$(BIN)/python -m kproba.results.tables results/summary.csv
	@echo
	@echo "Report: $$PWD/results/report.html"

test: setup-dev
	$(ACTIVE) python -m pytest $(PYTEST_FLAGS)

test-slurm: setup-dev
	$(ACTIVE) KPROBA_TEST_SLURM=1 python -m pytest $(PYTEST_FLAGS) tests/test_slurm.py

lint: setup-dev
	$(ACTIVE) ruff check .
	$(ACTIVE) ruff format --check .
	$(ACTIVE) snakefmt --check Snakefile workflow
	$(ACTIVE) mypy
	$(ACTIVE) snakemake --lint

docs: setup-dev
	$(ACTIVE) sphinx-build --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "Site: $$PWD/build/docs/index.html"

package: setup-dev
	rm -rf dist
	$(ACTIVE) python -m build --no-isolation
	$(ACTIVE) python -m pytest tests/test_package.py

bench: setup-dev
	$(ACTIVE) OMP_WAIT_POLICY=passive python -m benchmarks

format: setup-dev
	$(ACTIVE) python envs/update.py
	$(ACTIVE) ruff check --fix .
	$(ACTIVE) ruff format .
	$(ACTIVE) snakefmt Snakefile workflow

clean:
	rm -rf results .snakemake build dist
