# make demo     compress a small net on digits (no download of data) into runs/demo
# make test     ruff, mypy, pytest with doctests
# make bench NAME=channel_noise   one script of benchmarks/; more arguments in ARGS="..."
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin

.PHONY: demo test lint bench test-py312 clean install

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
	$(RUN)/mypy

test: lint
	$(RUN)/pytest

bench: $(STAMP)
	@test -f "benchmarks/$(NAME).py" || \
	  { echo "usage: make bench NAME=..., one of: $$(cd benchmarks && ls *.py 2>/dev/null | sed 's/\.py$$//' | tr '\n' ' ')"; exit 2; }
	$(RUN)/python benchmarks/$(NAME).py $(ARGS)

# The ArviZ adapter under ArviZ 1.x, which needs Python 3.12; skipped where there is none.
test-py312:
	@python=""; \
	for candidate in python3.12 $$HOME/.pyenv/versions/3.12*/bin/python; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; then \
	    python="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then echo "test-py312: no Python 3.12 found, skipped"; exit 0; fi; \
	set -e; \
	if [ ! -f $(VENV)-py312/.installed ] || [ setup.py -nt $(VENV)-py312/.installed ]; then \
	  "$$python" -m venv $(VENV)-py312; \
	  $(VENV)-py312/bin/python -m pip install -q -e '.[dev]' -c constraints/ci.txt || \
	    $(VENV)-py312/bin/python -m pip install -q -e '.[dev]'; \
	  touch $(VENV)-py312/.installed; \
	fi; \
	$(VENV)-py312/bin/pytest tests/posterior

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache runs/demo
	find . -name __pycache__ -not -path './.venv*' -type d -prune -exec rm -rf {} +
