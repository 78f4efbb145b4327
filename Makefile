# `make demo` and `make test` need only Python 3.11+ and make: each creates .venv, installs what it needs, and runs.
# A second call finds the installation done and starts at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-main test-simulated test-kill test-mutants test-versions test-gpu sanitize-gpu notebooks lab lint format docs test-site dist install install-all clean

help:
	@echo "make demo     train a small RAM-Net to recall (about a minute), with figures in demo/"
	@echo "make test     lint, types and all tests that need no GPU, those of the Numba CUDA kernels in a simulator"
	@echo "make test-kill  kill 50 training runs and 40 generations, and see that each goes on to the same bits"
	@echo "make test-mutants  change the code in one place, many times over, and see whether the tests notice"
	@echo "make test-versions  part of them with the oldest and the newest Python and packages, and with NumPy alone"
	@echo "make test-gpu the tests that need an NVIDIA GPU and CuPy;  make sanitize-gpu  looks for races and bad accesses"
	@echo "make notebooks  run the course from scratch, all cells and exercise checks;  make lab  opens it in JupyterLab"
	@echo "make docs     the site, in docs/_build/html, without warnings and with every link checked"
	@echo "make test-site  the same, then walked by a real browser (needs Chromium and its driver)"
	@echo "make lint     ruff, mypy and the linters of the workflows alone;  make format  lets ruff rewrite"
	@echo "make dist     wheel and sdist of what is committed, in dist/"
	@echo "make clean    remove .venv, caches, the built site and demo/"

demo: $(VENV)/.installed
	$(BIN)/ramnet-np demo

# run once more under Numba's CUDA simulator, which must be chosen before Numba is imported
SIMULATED := tests/kernels/test_numba_cuda_agreement.py tests/kernels/test_numba_cuda_arrays.py tests/kernels/test_simulator.py

# one process per core; more than eight would compile the same kernels over again
WORKERS := -n logical --maxprocesses 8

SLOWEST := --durations 15 --durations-min 5

test: lint test-main test-simulated

test-main: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(WORKERS) $(SLOWEST) -m "not gpu and not site and not kill"

test-simulated: $(VENV)/.installed-test
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest $(WORKERS) $(SLOWEST) -m "not gpu" $(SIMULATED)

test-kill: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 0 -s -m kill tests/train/test_kill.py tests/model/test_kill_tiers.py

# which mutants: make test-mutants MUTANTS="--sample 40 --seed 3 --only train/checkpoint"
MUTANTS ?=

test-mutants: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutants $(MUTANTS)

# what to run: make test-versions VERSIONS="newest --python python3.13"; tests/versions.py says what there is
VERSIONS ?=

test-versions: $(VENV)/.installed-test
	$(BIN)/python -m tests.versions $(VERSIONS)

notebooks: $(VENV)/.installed-notebooks
	$(BIN)/python notebooks/run.py

lab: $(VENV)/.installed-notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

# CuPy for CUDA 13; make test-gpu CUDA=12 for drivers before 580
CUDA ?= 13

test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable ".[test,cuda$(CUDA)]"
	$(BIN)/python -m pytest -m gpu

# compilers ask the driver for functions that it may not have: such answers are no errors of ours
sanitize-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable ".[test,cuda$(CUDA)]"
	for tool in "memcheck --report-api-errors no" racecheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m tests.kernels.sanitize || exit 1; \
	done

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --quiet --offline --persona pedantic .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

# Debian: apt-get install chromium chromium-driver
test-site: docs $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable ".[site]"
	$(BIN)/python -m pytest -m site tests/site

# of the commit, so that nothing else that lies in the folder gets in; make dist TAG=v1.2.3 checks the version too
dist: $(VENV)/.installed-test
	test -z "$(TAG)" || test "$(TAG)" = "v$$($(BIN)/python -c 'import ramnet_np; print(ramnet_np.__version__)')"
	rm -rf build/tree dist && mkdir -p build/tree
	git archive HEAD | tar -x -C build/tree
	$(BIN)/python -m build --outdir dist build/tree

install: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-notebooks: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable ".[test,notebooks]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@ $(VENV)/.installed

# everything that needs no GPU, at once: pip looks at the whole project anew at every call
install-all: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test,notebooks,docs,site]"
	@touch $(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-docs $(VENV)/.installed-notebooks

clean:
	rm -rf $(VENV) docs/_build docs/_lite docs/notebooks build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
