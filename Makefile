# make run    the whole job: set-up, every stage that is stale, the figures and the report
# make test   the same set-up, then the tests
# make lint   what ruff says
# make ui     MLflow and Prefect to look at; one Ctrl-C stops both
# make bench  measurements against other ways to do the same
SHELL := bash
PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test lint ui bench

run: $(INSTALLED)
	@$(BIN)/polymuse run

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

ui: $(INSTALLED)
	@$(BIN)/polymuse ui

# simple-lama-inpainting pins numpy below 2 and pillow below 10, and works on what we use instead.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps simple-lama-inpainting==0.1.2
	touch $@
