# make demo and make test need only Python >= 3.11 and make: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that wait asleep: spinning ones bring a busy machine to a crawl.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test docs check clean

demo: $(STAMP)
	$(BIN)/gridrad-cube demo demo

test: $(STAMP)
	$(BIN)/python -m pytest

# The pages, with notebooks run and a reference from docstrings, in docs/_build/html; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . docs/_build/html
	@echo docs/_build/html/index.html

check: $(VENV)/.checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lock is a constraints file: what a platform's torch needs besides comes along unpinned.
$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gridrad-cube needs Python >= 3.11, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@

$(VENV)/.checked: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[check]'
	touch $@

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo docs/_build docs/api/*.rst build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
