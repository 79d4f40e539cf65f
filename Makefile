# make book, make test: the two commands. `make help` lists the rest.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := $(VENV)/bin
# The environment follows the lock, the project and the folder: a copied one would test the original.
STAMP := $(VENV)/stamp-$(shell { pwd; cat requirements.lock pyproject.toml; } | cksum | tr -d ' \n')
# Two workers on two cores: one thread each, and the same sums on every machine.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest
# Chapters executed at a time, each by a process that takes six in turn: it takes seconds to start.
JOBS ?= 2
# Where the book is built: another folder keeps the pages of another profile, or of a second build.
BOOK ?= book
PAGES := build/$(BOOK)
CHAPTERS = $(BIN)/soundgreeks list | cut -d' ' -f1 | xargs -P $(JOBS) -n 6 $(BIN)/soundgreeks run

.PHONY: help book test lint unit notebooks devices chapters gpu bench mutants browser clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

book: $(STAMP)  ## execute every chapter, render the pages, say where they are
	@set -e; mkdir -p $(PAGES); exec 9> $(PAGES).lock; $(BIN)/python -c "$$LOCK" $(PAGES); \
	rm -rf $(PAGES)/[!_]*; cp -R book/. $(PAGES); \
	$(CHAPTERS) --out $(PAGES) $(RUN); \
	$(BIN)/jupyter-book build -q -W --keep-going $(PAGES); \
	echo "The book: file://$(CURDIR)/$(PAGES)/_build/html/index.html"

test: lint unit notebooks  ## lint, unit tests, and every chapter recomputed by nbval

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

unit: $(STAMP)
	$(PYTEST) tests --ignore tests/browser -q -n 2 -m "not chapter"

notebooks: $(STAMP)
	$(PYTEST) book --nbval-lax --nbval-cell-timeout 600 -q -n 2 --dist loadfile

devices: $(STAMP)  ## train every chapter anew at toy size, on a second device that is emulated
	$(PYTEST) tests/test_devices.py -q -n 2 -m chapter

chapters: $(STAMP)  ## execute every chapter and promote the clean results into book/
	$(CHAPTERS) --promote $(RUN)

gpu: $(STAMP)  ## the tests that need a GPU, and every chapter on it
	@$(BIN)/python -c "$$GPU"
	$(PYTEST) tests --ignore tests/browser -q -m gpu
	$(CHAPTERS) --device cuda --out build/gpu $(RUN)

bench: $(STAMP)  ## the speed comparisons, side by side
	@for f in benchmarks/*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

mutants: $(STAMP)  ## plant faults in a copy of the core, one at a time: the tests must catch each
	@$(BIN)/python tests/mutants -j $(JOBS) $(addprefix --only ,$(ONLY))

browser: $(STAMP)  ## click through the rendered pages with the network blocked (needs chromium)
	$(BIN)/python -m pip install -q "playwright>=1.50,<2"
	$(PYTEST) tests/browser -q -rA -n 2

# One build at a time in a folder: the lock lies on descriptor 9 of the shell and ends with it.
define LOCK
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(f"another make book is at work in {sys.argv[1]}: wait, or name another with BOOK=name")
endef
define GPU
import sys, torch
torch.cuda.is_available() or sys.exit("make gpu needs a CUDA GPU, and torch finds none here")
endef
export LOCK GPU

clean:  ## remove what was built
	rm -rf build

$(STAMP):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	@# The commands of a copied environment would run the original's Python.
	@! test -e $(BIN)/soundgreeks || head -n 2 $(BIN)/soundgreeks | grep -qF "$(abspath $(BIN))/" \
	|| $(PYTHON) -m venv --clear $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv || true
	@# uv does not read pip's find-links
	@links="$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)}"; \
	{ test -x $(BIN)/uv && \
	UV_FIND_LINKS="$$links" $(BIN)/uv pip install -q --python $(BIN)/python -r requirements.lock \
	&& UV_FIND_LINKS="$$links" $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e . ; } \
	|| $(BIN)/python -m pip install -q -r requirements.lock -e .
	@rm -f $(VENV)/stamp-* && touch $@
