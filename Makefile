# make book, make test: the two commands. `make help` lists the rest.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := $(VENV)/bin
# The environment is made anew when the lock or the project changes.
STAMP := $(VENV)/stamp-$(shell cat requirements.lock pyproject.toml | cksum | tr -d ' \n')
# Two workers on two cores: one thread each, and the same sums on every machine.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest
# Chapters executed at a time.
JOBS ?= 2

.PHONY: help book test lint unit notebooks chapters bench browser clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

book: $(STAMP)  ## execute every chapter, render the pages, say where they are
	@mkdir -p build/book && rm -rf build/book/[!_]* && cp -R book/. build/book
	$(BIN)/soundgreeks list | cut -d' ' -f1 | xargs -P $(JOBS) -n 1 $(BIN)/soundgreeks run --out build/book $(RUN)
	$(BIN)/jupyter-book build -q -W --keep-going build/book
	@echo "The book: file://$(CURDIR)/build/book/_build/html/index.html"

test: lint unit notebooks  ## lint, unit tests, and every chapter recomputed by nbval

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

unit: $(STAMP)
	$(PYTEST) tests --ignore tests/browser -q -n 2

notebooks: $(STAMP)
	$(PYTEST) book --nbval-lax --nbval-cell-timeout 600 -q -n 2 --dist loadfile

chapters: $(STAMP)  ## execute every chapter and promote the clean results into book/
	$(BIN)/soundgreeks list | cut -d' ' -f1 | xargs -P $(JOBS) -n 1 $(BIN)/soundgreeks run --promote $(RUN)

bench: $(STAMP)  ## the speed comparisons, side by side
	@for f in benchmarks/*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

browser: $(STAMP)  ## click through the rendered pages with the network blocked (needs chromium)
	$(BIN)/python -m pip install -q "playwright>=1.50,<2"
	$(PYTEST) tests/browser -q -rA

clean:  ## remove what was built
	rm -rf build

$(STAMP):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
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
