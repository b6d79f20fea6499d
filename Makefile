# make demo and make test need only Python >= 3.11 and make: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that wait asleep: spinning ones bring a busy machine to a crawl.
export OMP_WAIT_POLICY ?= PASSIVE

# What builds images: docker, podman, or buildah (deploy/docker/try-without-docker.sh).
CONTAINER ?= docker
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' gridrad_cube/__init__.py)

.PHONY: demo test faults docs test-minimum test-latest check lint-deploy try-wheel image image-cuda clean

demo: $(STAMP)
	$(BIN)/gridrad-cube demo demo

test: $(STAMP)
	$(BIN)/python -m pytest

# Kills, full disks, damage, two writers, hostile files: docs/guarantees.md. FAULTS="--only damage --seed 7" narrows them.
faults: $(STAMP)
	$(BIN)/python benchmarks/faults.py $(FAULTS)

# The pages, with notebooks run and a reference from docstrings, in docs/_build/html; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . docs/_build/html
	@echo docs/_build/html/index.html

check: $(VENV)/.checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint-deploy: $(VENV)/.lint-deploy
	PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" deploy/lint.sh

# The tests with the oldest versions that pyproject.toml promises; what it does not name is as new as it may be.
# TESTS narrows them, MINIMUM raises a bound: make test-minimum TESTS=tests/test_store.py MINIMUM="torch==2.13.0"
test-minimum:
	$(PYTHON) -m venv --clear .venv-minimum
	.venv-minimum/bin/python .github/minimum.py $(MINIMUM) > .venv-minimum/minimum.txt
	.venv-minimum/bin/python -m pip install --quiet --constraint .venv-minimum/minimum.txt --editable '.[test]'
	.venv-minimum/bin/python -m pytest $(TESTS)

# The tests with the newest of everything, without the lock.
test-latest:
	$(PYTHON) -m venv --clear .venv-latest
	.venv-latest/bin/python -m pip install --quiet --upgrade --editable '.[test]'
	.venv-latest/bin/python -m pytest $(TESTS)

# Source and wheel, each installed by itself and run from another folder.
try-wheel:
	rm -rf dist
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet build
	.venv-wheel/bin/python -m build --outdir dist .
	.venv-wheel/bin/python -m pip install --quiet --constraint requirements.lock dist/*.whl
	cd / && env PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" sh "$(CURDIR)/deploy/docker/smoke.sh"
	.venv-wheel/bin/python -m pip install --quiet --force-reinstall --no-deps dist/*.tar.gz
	cd / && env PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" sh "$(CURDIR)/deploy/docker/smoke.sh"

# TORCH_INDEX: address of PyTorch's wheels for CPUs, without which 3 GB of CUDA come along.
image:
	$(CONTAINER) build --file deploy/docker/Dockerfile --build-arg TORCH_INDEX=$(TORCH_INDEX) --tag gridrad-cube:$(VERSION) --tag gridrad-cube .

# torch as PyPI has it, with CUDA.
image-cuda:
	$(CONTAINER) build --file deploy/docker/Dockerfile --build-arg TORCH_INDEX= --tag gridrad-cube:cuda .

# The lock is a constraints file: what a platform's torch needs besides comes along unpinned.
$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gridrad-cube needs Python >= 3.11, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@

$(VENV)/.checked: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[check]'
	touch $@

# Without the package itself: its linters need none of its dependencies.
$(VENV)/.lint-deploy: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['lint-deploy'], sep='\n')" > $(VENV)/lint-deploy.txt
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --requirement $(VENV)/lint-deploy.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-minimum .venv-latest .venv-wheel demo docs/_build docs/api/*.rst build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
