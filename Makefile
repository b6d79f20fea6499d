# make demo and make test need only Python >= 3.11 and make: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that wait asleep: spinning ones bring a busy machine to a crawl.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check clean

demo: $(STAMP)
	$(BIN)/gridrad-cube demo demo

test: $(STAMP)
	$(BIN)/python -m pytest

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

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
