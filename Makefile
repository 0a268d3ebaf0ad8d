# Two commands: `make demo` and `make test`. They need Python >= 3.11, git and make, and use uv when it is there.
# Another Python: make demo PYTHON=python3.12.  Another folder for the environment: make demo VENV=/tmp/venv.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test long serve dashboard docs outputs lab hooks clean

VENV ?= .venv
BIN := $(abspath $(VENV))/bin
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && command -v $$p && break; done)
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

help:
	@echo 'make demo        create the environment and run the whole loop on real data'
	@echo 'make test        create the environment and run every check'
	@echo 'make long        every check at its full size, at most three hours; can be stopped and started again'
	@echo 'make serve       the prediction service of every trained problem, on 127.0.0.1:8100'
	@echo 'make dashboard   the dashboards, on 127.0.0.1:8866'
	@echo 'make docs        build the documentation site into _docs/'
	@echo 'make lab         JupyterLab'
	@echo 'make outputs     run every chapter and save in its notebook what the lessons show'
	@echo 'make hooks       let git clean and merge notebooks in this clone'
	@echo 'make clean       remove the environment, the caches and the site (never data or reports)'

demo: $(VENV)/.demo
	@$(BIN)/mlsys demo

test: $(VENV)/.dev
	PATH="$(BIN):$$PATH" sh tests/run

long: $(VENV)/.dev
	PATH="$(BIN):$$PATH" $(BIN)/python tests/long.py

serve: $(VENV)/.demo
	$(BIN)/mlsys serve

dashboard: $(VENV)/.demo
	$(BIN)/mlsys dashboard

docs: $(VENV)/.docs
	$(BIN)/mlsys docs

outputs: $(VENV)/.dev
	PATH="$(BIN):$$PATH" python tests/outputs.py

lab: $(VENV)/.dev $(VENV)/.lab
	$(BIN)/jupyter lab

hooks: $(VENV)/.dev
	git config core.hooksPath hooks
	git config merge.jupyternotebook.name 'merge notebooks cell by cell'
	git config merge.jupyternotebook.driver '"$(BIN)/nbdev-merge" %O %A %B %P'

clean:
	rm -rf $(VENV) _docs _proc build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo 'mlsys_nb needs Python >= 3.11 and found none; install one, or: make PYTHON=/path/to/python3'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'mlsys_nb needs Python >= 3.11, got $(PYTHON)'; exit 1; }
	@echo '== environment in $(VENV), by $(if $(UV),uv,venv and pip; with uv it takes seconds instead of minutes)'
	@$(if $(UV),$(UV) venv --quiet --allow-existing --python "$(PYTHON)" $(VENV),$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo 'no venv module; on Debian: apt-get install python3-venv'; exit 1; })

# One stamp an extra: a second run starts at once.
$(VENV)/.%: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo '== installing mlsys_nb[$*]; silent unless something fails$(if $(UV),, and a few minutes long)'
	@$(INSTALL) -c constraints.txt -e '.[$*]'
	@touch $@
