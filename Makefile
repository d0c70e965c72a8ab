# Everything that this repository does. `make` alone, or `make help`, lists it.

VENV ?= .venv
PYTHON ?=

BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.hmdc-installed
# Tools and kernel of the environment come first: the kernel `python3` has to be the one that the package is in.
ENV := PATH="$(BIN):$$PATH" JUPYTER_PREFER_ENV_PATH=1

MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.PHONY: help setup table1 test slow export publish wheel lab clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## Create .venv and install everything into it (about 5 GB; once)

table1: setup ## Regenerate Table 1 on digits, preset quick, and print it (minutes on two cores; finished runs are kept)
	@mkdir -p runs
	@$(ENV) papermill nbs/reproduce_table1.ipynb runs/table1.ipynb -k python3 -l python --log-output --no-progress-bar
	@cat figures/table1-digits-quick.txt

test: setup ## Check that notebooks and modules agree, run every notebook's tests, then pytest
	@$(ENV) pytest --quiet tests/test_sync.py
	@$(ENV) OMP_NUM_THREADS=1 nbdev_test
	@$(ENV) OMP_NUM_THREADS=1 pytest --ignore tests/test_sync.py

slow: setup ## Run the slow tests (architectures at 224 px)
	@$(ENV) pytest -m slow

export: setup ## Write the modules from the notebooks, and clean the notebooks
	@$(ENV) nbdev_export
	@$(ENV) nbdev_clean

publish: ## Copy Table 1's figures and tables, but those of preset smoke, to figures/published, where git keeps them
	@cp -v $$(ls figures/table1-* | grep -v -e '-smoke') figures/published/

wheel: setup ## Build the wheel and the source archive into dist/
	@$(ENV) python -m build --quiet
	@ls dist

lab: setup ## Open the notebooks in JupyterLab
	@$(ENV) jupyter lab --notebook-dir nbs

clean: ## Remove caches and build artefacts; .venv, data, runs and figures stay
	@rm -rf build dist *.egg-info .pytest_cache
	@find hmdc nbs tests -name __pycache__ -prune -exec rm -rf {} +
	@find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +

# An environment that is there is installed into, never replaced. A new one is made with the first Python that fits:
# PYTHON, where it is given, or else what is on the path.
$(INSTALLED): settings.ini setup.py
	@if test ! -x $(BIN)/python; then \
	  for python in $(or $(PYTHON),python3 python3.12 python3.11 python3.10 python); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if test -z "$$found"; then \
	    echo "No Python 3.10, 3.11 or 3.12 with its venv module found. Install one (on Debian and Ubuntu: apt install" >&2; \
	    echo "python3-venv), or name one: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$($$found --version)"; \
	  $$found -m venv $(VENV); \
	fi
	@echo "Installing hmdc and its tools into $(VENV): about 5 GB with torch, some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
