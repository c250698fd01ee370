# `make demo` and `make test` work from a fresh clone with Python >= 3.11 and make alone.
# Another interpreter:  make test PYTHON=python3.12 VENV=.venv312

VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo lab test tutorials docs lint format gpu-check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## write text with the bundled model
	$(VENV)/bin/mamba-np generate "Once upon a time"

lab: $(VENV)/.installed-tutorials  ## open the tutorials in Jupyter
	$(VENV)/bin/jupyter lab tutorials

test: $(VENV)/.installed-test  ## run the tests; options for pytest: make test ARGS="-k cache"
	$(VENV)/bin/python -m pytest $(ARGS)

tutorials: $(VENV)/.installed-test  ## run the notebooks as Jupyter does
	$(VENV)/bin/python -m pytest tests/test_tutorials.py --notebooks -m notebooks -rP $(ARGS)

docs: $(VENV)/.installed-docs  ## make the pages of the documentation: build/docs/index.html
	rm -rf build/docs docs/api docs/auto_gallery docs/project docs/tutorials
	$(VENV)/bin/sphinx-build --fail-on-warning --nitpicky --keep-going --quiet docs build/docs
	$(VENV)/bin/python docs/_ext/check_site.py build/docs

lint: $(VENV)/.installed-lint  ## style, types, imports and the repository's own gates
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --venvpath $(dir $(abspath $(VENV))) mamba_np tools
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python tools/check.py

format: $(VENV)/.installed-lint  ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

gpu-check: $(VENV)/.installed-gpu  ## test the GPU engine on a GPU of this machine, and time it
	$(VENV)/bin/python tools/gpu_check.py $(ARGS)

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build docs/api docs/auto_gallery docs/project docs/tutorials dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: a stamp for each set of packages, renewed when pyproject.toml changes ----

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet -e .
	@touch $@

$(VENV)/.installed-gpu: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet -e ".[test,cuda]"
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet -e ".[$*]"
	@touch $@

# Candidates are run, not only looked up: some names exist and lead to no usable Python.
$(VENV)/bin/python:
	@for python in "$(PYTHON)" python3 python python3.14 python3.13 python3.12 python3.11; do \
	    if [ -n "$$python" ] && "$$python" -c "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))" \
	            2>/dev/null; then \
	        echo "making $(VENV) with $$("$$python" -c 'import sys; print("Python", sys.version.split()[0])')"; \
	        exec "$$python" -m venv $(VENV); \
	    elif [ -n "$$python" ] && [ "$$python" = "$(PYTHON)" ]; then break; \
	    fi; \
	done; \
	echo "Python 3.11 or newer, with its venv module, is needed: found none$${PYTHON:+ as PYTHON=$$PYTHON}." >&2; \
	echo "On Debian and Ubuntu: apt install python3-venv. Elsewhere: https://www.python.org/downloads" >&2; \
	echo "If it has another name, say so: make PYTHON=/path/to/python3" >&2; \
	exit 1
