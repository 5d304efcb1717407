# make demo and make test do all the set-up on a fresh clone; make help lists the rest.
#
# Variables: PYTHON (the one to make the environment with), VENV (where), TORCH (what to install as torch, for
# example TORCH="torch==2.12.1 --index-url https://download.pytorch.org/whl/cpu"), JOBS (parallel tests),
# ARGS (passed on to pytest, the demo or the benchmark).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
BUILD := $(BIN)/python setup.py --quiet build_ext --inplace
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PY_FILES = python tests bench tools setup.py

.DEFAULT_GOAL := help
.PHONY: help setup build demo test coverage bench lint format cuda-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch comes first and alone, so that nothing else picks another one.
$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/tools.stamp: $(VENV)/torch.stamp
	$(PIP) cmake ninja
	@touch $@

# An editable install: the Python sources stay here, and the module lies beside them. It is built first, in the
# open; pip then finds nothing left to compile. Tests of libraries that hesse helps skip where these are missing.
$(VENV)/ready.stamp: pyproject.toml setup.py $(VENV)/tools.stamp
	$(BUILD)
	$(PIP) --no-build-isolation --editable ".[demo,test,bench,lint]"
	-$(PIP) --no-build-isolation --editable ".[peers]"
	@touch $@

setup: $(VENV)/ready.stamp  ## make the environment: torch, tools, dependencies

build: setup  ## bring the compiled module up to date, in place
	@$(BUILD)

demo: build  ## exact Hessians of two classifiers on the digits images
	$(BIN)/python -m hesse $(ARGS)

test: build  ## run every test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

coverage: build  ## write docs/coverage.md: every op of PyTorch's test tables (about 2 minutes)
	PYTHONPATH=tests OMP_WAIT_POLICY=passive $(BIN)/python -W ignore -m survey docs/coverage.md

bench: build  ## time hesse against its peers
	$(BIN)/python -m bench $(ARGS)

lint: setup  ## check style, formatting and types
	$(BIN)/ruff check $(wildcard $(PY_FILES))
	$(BIN)/ruff format --check $(wildcard $(PY_FILES))
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: setup  ## format the sources
	$(BIN)/ruff check --fix-only $(wildcard $(PY_FILES))
	$(BIN)/ruff format $(wildcard $(PY_FILES))
	$(BIN)/clang-format -i $(CXX_FILES)

cuda-check:  ## compile the CUDA kernels, without a GPU and without torch; fail where registers spill
	@$(PYTHON) tools/cuda_check.py $(ARGS)

clean:  ## remove what was built; the environment stays
	rm -rf build dist python/*.egg-info python/hesse/_C*.so python/hesse/_build.py
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f $(VENV)/ready.stamp
