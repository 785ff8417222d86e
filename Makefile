# Every target but help and clean needs .venv and makes it first; once it is there that costs nothing.
#
#   make setup PYTHON=python3.13                      a particular interpreter for a new .venv
#   make test CONSTRAINTS=constraints-minimum.txt     the oldest supported versions
#   make test EXTRAS=dev                              without the optional extras

PYTHON ?= python3 python3.13 python3.12 python3.11 python3.14
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev,tensorboard

VENV := .venv
BIN := $(VENV)/bin
# Up to four processes, of one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
STAMP := $(VENV)/.installed-$(notdir $(CONSTRAINTS))-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint check smoke bench clean FORCE

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP) ## make .venv and install the suite into it, editable

demo: $(STAMP) ## train and compare plain and Gaussian networks on scikit-learn's digits (no download, no GPU)
	$(BIN)/convsuite reproduce configs/grids/digits.yaml --jobs 2

test: $(STAMP) ## run the tests; those on real data need CONVSUITE_DATA
	$(PYTEST)

test-all: $(STAMP) ## run the tests and the slow ones
	$(PYTEST) -m ""

smoke: $(STAMP) ## run every complete experiment in configs/ for a few real steps
	$(BIN)/python -m pytest -m smoke

lint: $(STAMP) ## check formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test ## lint, then test

bench: $(STAMP) ## time layers, training steps and inference side by side (ten minutes; leave the machine to it)
	$(BIN)/python -m benchmarks.gaussian
	$(BIN)/python -m benchmarks.octave
	$(BIN)/python -m benchmarks.tiling
	$(BIN)/python -m benchmarks.sunet
	$(BIN)/python -m benchmarks.medical

clean: ## remove caches, build output and run folders (runs/ too); .venv and data sets stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache runs lightning_logs wandb
	find . -path ./$(VENV) -prune -o -path ./data -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# Without a pip that runs, .venv is missing, or left over from an interrupted set-up or a removed Python: make it anew.
$(STAMP): pyproject.toml $(CONSTRAINTS) $(if $(realpath $(BIN)/python),,FORCE)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(make_venv); }
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@rm -f $(VENV)/.installed-* && touch $@

# Candidates are run, not only looked up: a version manager's shim answers to names that it cannot run.
define make_venv
for python in $(PYTHON); do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
  $$python -c 'import ensurepip' >/dev/null 2>&1 || { bare=$$python; continue; }; \
  found=$$python; break; \
done; \
if [ -n "$$found" ]; then echo "$$found -m venv $(VENV)"; $$found -m venv --clear $(VENV); \
elif [ -n "$$bare" ]; then echo "$$bare cannot make virtual environments: install its venv package" \
  "(Debian, Ubuntu: apt install python3-venv), then run make again." >&2; exit 1; \
else echo "convsuite needs Python 3.11 or newer; none among: $(PYTHON)." \
  "Install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; fi
endef
