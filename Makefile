# Everything runs in a virtual environment made here by plain Python and pip; nothing else has to be installed first.
# Paths are relative, and the environment's tools are called as modules, so a path with spaces works.

PYTHON ?= python3
PRESET ?= cpu
ROUNDS ?= 100
EXTRA ?= $(shell cat .venv/extra 2>/dev/null)
comma := ,
VENV := .venv/bin/python
KERNELS := .venv-kernels/bin/python
INSTALLED := .venv/installed$(if $(EXTRA),-$(EXTRA))

ifneq ($(filter-out gpu tpu parity gcs,$(EXTRA)),)
$(error EXTRA is one of gpu, tpu, parity, gcs; given: $(EXTRA))
endif

# Compilers for accelerators, apart from what the results are computed with; versions from constraints.txt.
COMPILERS := jax jaxlib libtpu jaxtyping absl-py jax-cuda13-plugin nvidia-cuda-nvcc nvidia-nvvm nvidia-nvjitlink

.PHONY: help install reproduce reproduce-all demo test test-all disturb kernels check lint types notebooks clean
.DEFAULT_GOAL := help

help: ## list these commands
	@echo "make COMMAND [PRESET=smoke|cpu|gpu|paper] [ROUNDS=100] [EXTRA=gpu|tpu|parity|gcs] [PYTHON=python3]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## make .venv and install everything into it (EXTRA=gpu, tpu or gcs for those)

reproduce: $(INSTALLED) ## the headline results at PRESET, then the report
	@$(VENV) -m experiments run headline --preset $(PRESET)
	@$(VENV) -m experiments report

reproduce-all: $(INSTALLED) ## every result at PRESET, then the report
	@$(VENV) -m experiments run all --preset $(PRESET)
	@$(VENV) -m experiments report

demo: $(INSTALLED) ## one figure and its verdicts, in two minutes
	@$(VENV) -m experiments run tokenization/dictionary_size --preset $(PRESET)

test: $(INSTALLED) ## the quick tests
	@$(VENV) -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(INSTALLED) ## every test, also the cases that CI has no time for
	@$(VENV) -m pytest -n 2 --dist worksteal

disturb: $(INSTALLED) ## kill and damage ROUNDS=100 short trainings; each must end as if undisturbed
	@$(VENV) tests/reliability/disturbance.py --rounds $(ROUNDS)

kernels: ## compile every kernel for TPUs and GPUs, without any, against lightnet/scan/budgets.json; WRITE=1 writes that
	@$(KERNELS) -c 'import libtpu, jaxtyping, absl, jax_cuda13_plugin' 2>/dev/null || { \
	  "$(PYTHON)" -m venv --clear .venv-kernels && \
	  $(KERNELS) -m pip install -q --disable-pip-version-check -c constraints.txt -c .ci/kernels/constraints.txt $(COMPILERS); }
	@$(KERNELS) .ci/compile_kernels.py $(if $(WRITE),--write)

check: ## all that CI does: lint, types, tests, results at smoke, notebooks, README
	@PYTHON="$(PYTHON)" bash .ci/run

lint: $(INSTALLED) ## ruff: rules and format; shellcheck
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@.venv/bin/shellcheck .ci/run launch/*.sh

types: $(INSTALLED) ## mypy
	@$(VENV) -m mypy

notebooks: $(INSTALLED) ## execute the notebooks again from their .py files
	@$(VENV) .ci/execute_notebooks.py --write

clean: ## remove what can be made again: caches, builds and .venv; runs/ and results/ stay
	rm -rf .venv .venv-kernels build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A checkout that was moved or copied together with its .venv installs itself again: the install refers to its path.
ifneq ($(shell cat .venv/location 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

$(INSTALLED): pyproject.toml constraints.txt
	@$(VENV) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "error: Python 3.11 or later is needed, and $(PYTHON) is '$$("$(PYTHON)" --version 2>&1)': make ... PYTHON=/path/to/python3" >&2; exit 2; }; \
	  "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "error: $(PYTHON) has no venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }; \
	  "$(PYTHON)" -m venv --clear .venv; }
	@echo "installing into .venv: a few minutes the first time"
	@if [ -t 1 ]; then quiet=; else quiet=-q; fi; \
	  $(VENV) -m pip install $$quiet --disable-pip-version-check -c constraints.txt -e ".[test,dev,notebooks$(if $(EXTRA),$(comma)$(EXTRA))]"
	@printf '%s' "$(EXTRA)" > .venv/extra
	@printf '%s' "$(CURDIR)" > .venv/location
	@touch "$(INSTALLED)"
