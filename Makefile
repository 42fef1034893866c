# moesim needs Python 3.11 or newer, pip and make; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
USER_DONE := $(VENV)/.moesim
DEV_DONE := $(VENV)/.moesim-dev
# Numeric libraries would start a thread per core in each of the test processes.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo test check wheel bench calibrate format clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

demo: $(USER_DONE)  ## install moesim and run its main job on an embedded example
	$(BIN)/moesim demo

test: $(DEV_DONE)  ## run all tests
	$(BIN)/python -m pytest -n $(JOBS)

check: $(DEV_DONE)  ## lint, format, strict types, one-way imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

wheel: $(DEV_DONE)  ## build the wheel, install it into an empty environment, run every verb's help and one prediction
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	cd build/wheel && for verb in recommend simulate estimate experiment place imbalance \
	  queue-depth models hardware demo calibrate predict-strategy profile residuals validate; do \
	  env/bin/moesim $$verb --help > /dev/null || exit 1; done
	cd build/wheel && env/bin/moesim simulate --model olmoe-1b-7b --hardware h200 --json > /dev/null

bench: $(USER_DONE)  ## measure the simulator's own speed, printed as JSON
	$(BIN)/python -m analysis.speed

REFERENCE ?= ../shared/reference
calibrate: $(USER_DONE)  ## fit the shipped parameter sets again (public tables and runs under REFERENCE, ours in the project)
	$(BIN)/moesim calibrate --recipe shipped --data $(REFERENCE) --data calibration/data \
	  --state build/calibration --output configs/parameters

format: $(DEV_DONE)  ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make created
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moesim needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(USER_DONE): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(DEV_DONE): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $(USER_DONE) $@
