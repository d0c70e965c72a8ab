# Everything that this repository does. `make` alone, or `make help`, lists it.

VENV ?= .venv
PYTHON ?=
DATASET ?= digits
DEVICE ?= cpu
WEIGHTS ?=
STANDIN_DATA ?= cifar100

BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.hmdc-installed
# Tools and kernel of the environment come first: the kernel `python3` has to be the one that the package is in.
ENV := PATH="$(BIN):$$PATH" JUPYTER_PREFER_ENV_PATH=1

MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.PHONY: help setup table1 table2 figures reproduce test fuzz torture slow architectures check notebooks export scaling bench tune standins precision publish wheel lab clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## Create .venv and install everything into it (about 5 GB; once)

# A reproduce notebook at its defaults, executed to runs/; finished runs are kept, and all three share them. In the place of
# the shell, so that a signal to make reaches it.
REPRODUCE = exec env $(ENV) papermill nbs/reproduce_$@.ipynb runs/$@.ipynb -k python3 -l python --log-output --no-progress-bar

table1: setup ## Regenerate Table 1 on digits, preset quick, and print it (45 minutes on two cores; finished runs are kept)
	@mkdir -p runs
	@$(REPRODUCE)
	@cat figures/table1-digits-quick.txt

table2: setup ## Regenerate Table 2, the ablation, in the same way; runs that Table 1 has made are reused
	@mkdir -p runs
	@$(REPRODUCE)
	@cat figures/table2-digits-quick.txt

figures: setup ## Regenerate the figures from the tables' runs and a few more, into figures/
	@mkdir -p runs
	@$(REPRODUCE)
	@ls figures/*-digits-quick*.png

reproduce: setup ## Table 1, Table 2 and the figures, in this order
	@$(MAKE) table1
	@$(MAKE) table2
	@$(MAKE) figures

test: setup ## Check that notebooks and modules agree, run every notebook's tests, then pytest
	@$(ENV) pytest --quiet tests/test_sync.py
	@$(ENV) OMP_NUM_THREADS=1 nbdev_test
	@$(ENV) OMP_NUM_THREADS=1 pytest --numprocesses auto --dist loadfile --ignore tests/test_sync.py

fuzz: setup ## Read a hundred thousand mutated files with every reader; no code may run, nothing may hang (hours on one core)
	@$(ENV) OMP_NUM_THREADS=1 python tests/fuzz_readers.py --inputs 100000 --seed 0

torture: setup ## Kill a condensation thirty times, at any moment; it has to end in the bits of one left alone (minutes)
	@$(ENV) OMP_NUM_THREADS=1 KILLS=30 pytest tests/test_survival.py

slow: setup ## Run the slow tests (a hundred architectures, some at 224 px, torchrun, a cluster, the study; an hour)
	@$(ENV) pytest -m slow

architectures: setup ## Condense with and train each of 151 architectures of timm for a step, into figures/ (20 minutes)
	@$(ENV) OMP_NUM_THREADS=2 python tests/test_architectures.py

check: setup ## Check the form of all notebooks without running them; print how long the exported cells are
	@$(ENV) pytest --quiet tests/test_sync.py tests/test_notebooks.py
	@$(ENV) python tests/test_notebooks.py

notebooks: setup ## Run the component notebooks and look_inside in place, so that their outputs are fresh (minutes)
	@$(ENV) OMP_NUM_THREADS=1 jupyter nbconvert --to notebook --execute --inplace --log-level ERROR \
	  --ExecutePreprocessor.kernel_name=python3 nbs/[0-9]*.ipynb nbs/look_inside.ipynb
	@$(ENV) nbdev_clean

export: setup ## Write the modules from the notebooks, and clean the notebooks
	@$(ENV) nbdev_export
	@$(ENV) nbdev_clean

scaling: setup ## Measure steps and memory against classes and images, into figures/ (minutes)
	@$(ENV) python -c "from hmdc.scaling import save_scaling, scaling; save_scaling(scaling())"

bench: setup ## Measure every part, plain and fast, on DEVICE (cpu, cuda), into figures/ (ten minutes on two cores)
	@for setting in $(if $(filter cuda%,$(DEVICE)),32px paper,cpu-small); do $(ENV) python -c \
	  "from hmdc.bench import bench, save; save(bench('$$setting', '$(DEVICE)'))" || exit 1; done
	@if test $(DEVICE) = cpu; then $(ENV) python -c 'from hmdc.bench import cost, save_cost; save_cost(cost(device="cpu"))'; fi
	@ls figures/bench-* figures/cost-*

tune: setup ## Choose the rates of protocol `corrected` on CIFAR-10, into data/protocol/rates.csv; WEIGHTS: the stand-ins' folder
	@$(ENV) python -c 'from hmdc.data import load_dataset; from hmdc.tuning import tune, tuned_members; \
	  tune(load_dataset("cifar10").holdout(0.04, 0), tuned_members("$(WEIGHTS)"), "data/protocol/rates.csv")'

standins: setup ## Pretrain stand-ins for ImageNet weights on STANDIN_DATA (cifar100, or a folder), on DEVICE, into data/standins (hours on a CPU)
	@$(ENV) python -c 'from hmdc.data import load_dataset; from hmdc.standins import standins; \
	  standins(load_dataset("$(STANDIN_DATA)", image_size=32), "data/standins", device="$(DEVICE)")'

precision: setup ## Condense DATASET (digits) in fp32 and in bf16 and compare the accuracies, into figures/ (8 minutes for digits)
	@$(ENV) python -c 'from hmdc.bench import save_precision; save_precision("$(DATASET)")'

publish: ## Copy tables and figures, but those of preset smoke, to figures/published, where git keeps them
	@cp -v $$(ls figures/*-*.* | grep -v -e '-smoke') figures/published/

wheel: setup ## Build the wheel and the source archive into dist/
	@$(ENV) python -m build --quiet
	@ls dist

lab: setup ## Open the notebooks in JupyterLab
	@$(ENV) jupyter lab --notebook-dir nbs $(if $(filter 0,$(shell id -u)),--allow-root)

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
