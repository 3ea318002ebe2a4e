# `make demo` and `make test` each work as the only command on a machine with Python >= 3.11 and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread each: small networks gain little from a second thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

.PHONY: demo test test-slow test-browser check format-check lint types floors docs format clean

demo: $(VENV)/installed
	$(BIN)/frostline demo

test: $(VENV)/installed
	$(PYTEST)

test-slow: $(VENV)/installed
	$(PYTEST) -m slow

test-browser: $(VENV)/installed
	$(BIN)/python -m pytest -m browser

check: format-check lint types floors

format-check: $(VENV)/installed
	$(BIN)/ruff format --check .

lint: $(VENV)/installed
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

floors: $(VENV)/installed
	$(BIN)/lint-imports

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist site

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu,test]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# Some systems ship Python without what `venv` needs to put pip inside; virtualenv brings its own.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "frostline needs Python 3.11 or later: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV) && $(PYTHON) -m pip install --quiet --target build/virtualenv virtualenv && \
	  PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv $(VENV); }
