# make lab     build the environment from nothing and open JupyterLab on the notebooks
# make test    build the environment from nothing and run everything that CI checks
# make help    the rest

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
BUILD  := build

# Flags passed through: make lab LAB_ARGS="--no-browser --port 8899", make test PYTEST_ARGS="-x -k dime", ...
LAB_ARGS     ?=
PYTEST_ARGS  ?=
TRAIN_ARGS   ?=
BENCH_ARGS   ?=

# The environment is made anew whenever the lock, the package's metadata or the place of the checkout changes.
KEY   := $(shell { cat requirements.lock pyproject.toml; pwd; } | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.made-$(KEY)

LEARNER   = $(wildcard notebooks/*.ipynb)
SOLUTIONS = $(wildcard notebooks/solutions/*.ipynb)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help venv lab run test lint unit nbval papermill notebooks check-notebooks weights bench clean

help:
	@echo "make lab                 build .venv, open JupyterLab on notebooks/ (LAB_ARGS passes flags)"
	@echo "make run                 build .venv, execute notebook 02 into $(BUILD)/02_dime.html"
	@echo "make test                build .venv, then everything that CI checks"
	@echo "make notebooks           write the notebooks from notebooks/source/*.py"
	@echo "make weights NAME=...    train a shipped model again, e.g. NAME=personas/ddpm (TRAIN_ARGS passes flags)"
	@echo "make bench               print the speed figures of this machine (BENCH_ARGS passes flags)"
	@echo "make lint | unit | check-notebooks | nbval | papermill     the parts of make test"
	@echo "make clean               remove .venv, $(BUILD)/ and all caches"

# ---------------------------------------------------------------- environment

venv: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || { \
	  found=$$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || true); \
	  echo "cfx_lib needs Python 3.11.5 or newer; '$(PYTHON)' is $${found:-not found}." >&2; \
	  echo "Install one and name it, for example: make lab PYTHON=python3.12" >&2; exit 1; }
	@echo "building the environment in $(VENV) (a few minutes, once) ..."
	@rm -rf "$(VENV)"
	@$(PYTHON) -m venv "$(VENV)"
	@$(PY) -m pip install --quiet --requirement requirements.lock
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# ---------------------------------------------------------------- for learners

lab: venv
	$(PY) -m jupyterlab --ServerApp.root_dir=notebooks $(LAB_ARGS)

run: venv | $(BUILD)
	$(PY) -m papermill --cwd notebooks/solutions --no-progress-bar \
	  notebooks/solutions/02_dime.ipynb $(BUILD)/02_dime.ipynb
	$(PY) -m nbconvert --log-level=WARN --to html --output-dir $(BUILD) $(BUILD)/02_dime.ipynb
	@echo "notebook 02, executed: $(CURDIR)/$(BUILD)/02_dime.html"

# ---------------------------------------------------------------- for contributors

test: lint check-notebooks unit nbval papermill
	@echo "everything passed"

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

unit: venv
	$(PY) -m pytest $(PYTEST_ARGS)

nbval: venv
	$(PY) -m pytest --nbval-lax --durations=5 $(LEARNER)

papermill: venv | $(BUILD)
	@mkdir -p $(BUILD)/solutions
	@set -e; for notebook in $(SOLUTIONS); do \
	  echo "papermill $$notebook"; \
	  $(PY) -m papermill --cwd notebooks/solutions --no-progress-bar \
	    $$notebook $(BUILD)/solutions/$$(basename $$notebook); \
	done

notebooks: venv
	$(PY) -m cfx_lib.learn.build

check-notebooks: venv
	$(PY) -m cfx_lib.learn.build --check

weights: venv
	@test -n "$(NAME)" || { echo "say which: make weights NAME=personas/ddpm" >&2; exit 1; }
	$(PY) -m cfx_lib.train $(NAME) $(TRAIN_ARGS)

bench: venv
	$(PY) -m cfx_lib.bench $(BENCH_ARGS)

clean:
	rm -rf "$(VENV)" $(BUILD) *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BUILD):
	@mkdir -p $@
