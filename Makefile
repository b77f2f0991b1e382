# make demo           compress a small net on digits (no download of data) into runs/demo
# make check          lint, types, floors, the tests of what changed: under a minute
# make test           check's static part, the documentation, and all tests that are not marked slow
# make test-all       the slow tests too
# make trust          random networks, kills, damaged files, bad input, calibration: thousands of cases, counted
# make docs           build the documentation into site/; make docs-serve shows it while it is written
# make bench NAME=channel_noise   one script of benchmarks/; more arguments in ARGS="..."
# make test-oldest    fast tests with the oldest supported versions; make test-py312, make test-py313 likewise
# make release-check  builds sdist and wheel, looks inside, and tries the wheel in a clean environment
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin
# One worker per core, one thread per worker: torch's own threads would fight for the same cores.
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN)/pytest -n $(CORES) --dist worksteal
FAST := -m "not slow"

.PHONY: demo check test test-all trust lint docs docs-serve bench test-oldest test-py312 test-py313 release-check clean install

install: $(STAMP)

# The pinned versions first; a platform that lacks one of them gets the newest that setup.py allows.
$(STAMP): setup.py constraints/ci.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pyrobnn needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1): use make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); torch is large, the first time takes minutes"
	@$(RUN)/python -m pip install -q -e '.[dev,notebooks]' -c constraints/ci.txt || \
	  { echo "the pinned versions do not fit here; trying without constraints/ci.txt"; \
	    $(RUN)/python -m pip install -q -e '.[dev,notebooks]'; }
	@touch $@

demo: $(STAMP)
	rm -rf runs/demo
	$(RUN)/pyrobnn compress --model small_cnn --data digits --max-drop 1.0 --out runs/demo

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check --quiet .
	$(RUN)/mypy
	$(RUN)/lint-imports

check: lint
	@tests="$$(.ci/changed-tests)"; \
	if [ -z "$$tests" ]; then echo "check: no test belongs to what changed"; else $(PYTEST) -q $(FAST) $$tests; fi

# The long form of tests/trust; its short form is part of make test.
trust: $(STAMP)
	PYROBNN_TRUST=full PYROBNN_TRUST_RESULT=benchmarks/results/trust.json $(PYTEST) -q tests/trust

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

docs-serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs serve

test: lint docs
	$(PYTEST) $(FAST)

test-all: lint docs
	$(PYTEST)

bench: $(STAMP)
	@test -f "benchmarks/$(NAME).py" || \
	  { echo "usage: make bench NAME=..., one of: $$(cd benchmarks && ls *.py 2>/dev/null | sed 's/\.py$$//' | tr '\n' ' ')"; exit 2; }
	$(RUN)/python benchmarks/$(NAME).py $(ARGS)

# ArviZ 1.x needs Python 3.12, so its adapter is tested there.
test-py312:
	.ci/test-with 3.12 constraints/ci.txt tests/views tests/posterior tests/summary

test-py313:
	.ci/test-with 3.13 constraints/ci.txt tests

test-oldest:
	.ci/test-with 3.11 constraints/oldest.txt tests

release-check: $(STAMP)
	PYTHON=$(PYTHON) .ci/release-check

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache runs/demo
	find . -name __pycache__ -not -path './.venv*' -type d -prune -exec rm -rf {} +
