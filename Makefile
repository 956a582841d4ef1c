# `make demo` and `make test` need nothing but Python 3.11 to 3.13; everything goes into .venv.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
DATASET ?= digits
MODEL   ?= resnet8
RECIPE  ?= sparse50_wi8_ai8
WORKERS ?= 3
RECIPES ?= wi8_ai8,sparse50_wi8_ai8

TARGET  ?= cpu
ENDS    := lower upper
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' tfmot_ops/__init__.py)

.DEFAULT_GOAL := help
.PHONY: docs layers sweep matrix help setup demo ui test helm check lock bench clean places hooks image version airflow-ends

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: $(STAMP) ## .venv in the checkout with everything in it

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"required: Python 3.11 to 3.13\n  received: {v[0]}.{v[1]}\n  remedy:   make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "Installing into $(VENV); some minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## train -> prune -> fine-tune -> strip -> quantize -> evaluate on real data (DATASET=, MODEL=, RECIPE=)
	@$(BIN)/python -m tools.demo --dataset $(DATASET) --model $(MODEL) --recipe $(RECIPE)

ui: setup ## Airflow and MLflow on loopback, Ctrl-C stops both
	@$(BIN)/python -m tools.demo ui

sweep: setup ## the compat matrix: every architecture through the whole chain, resumable (ARCHITECTURES=, RECIPES=)
	@$(BIN)/tfmot-ops sweep --architectures "$(ARCHITECTURES)" --recipes "$(RECIPES)"

matrix: RECIPES = $(RECIPE)
matrix: sweep ## the same with one recipe (ARCHITECTURES=, RECIPE=)

test: setup ## the whole suite, on WORKERS=3 processes; FAST=1 without the slow tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(if $(filter-out 0,$(FAST)),-m "not slow" --durations=10)

helm: setup ## the Helm chart: lint, render, refusals, strict validation; installed where there is a cluster
	@$(BIN)/python -m pytest -q tests/helm

places: setup ## steps in a real Docker engine and a real cluster, the image included (TFMOT_OPS_LAB= names scripts for both)
	@TFMOT_OPS_PLACES=1 $(BIN)/python -m pytest $(or $(PLACES),tests/places)

airflow-ends: $(ENDS:%=airflow-%) ## the operators under the lowest and the highest Airflow of pyproject.toml's range (-j2: both at once)

airflow-%: .venv-airflow-%/.installed
	@.venv-airflow-$*/bin/python -m pytest -q -m airflow tests/contract tests/orchestration

# One after the other, also with -j2: both write the metadata of this package into the checkout.
.venv-airflow-upper/.installed: | .venv-airflow-lower/.installed
.venv-airflow-%/.installed: requirements/airflow-%.txt pyproject.toml
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r $<
	@$(@D)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

check: setup ## ruff, mypy --strict, import-linter, codespell, hadolint, lean imports, few Any
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(BIN)/hadolint docker/Dockerfile
	@$(BIN)/python -m pytest -q tests/contract/test_lean_import.py tests/contract/test_annotations.py

hooks: setup ## have git run the quick checks at each commit (pre-commit)
	@$(BIN)/pre-commit install

version: ## the version, as tfmot_ops/__init__.py has it
	@echo $(VERSION)

image: ## a Docker image, tfmot-ops:<version>-$(TARGET); TARGET=cpu, gpu, airflow or mlflow
	@docker build -f docker/Dockerfile --target $(TARGET) --build-arg VERSION=$(VERSION) --build-arg REVISION="$$(git rev-parse HEAD)" -t tfmot-ops:$(VERSION)-$(TARGET) .

layers: setup ## docs/layers.md: what becomes of each layer class of tf_keras
	@$(BIN)/python -m tools.layer_table docs/layers.md

docs: setup ## the documentation as a site, docs/_build/html; warnings are errors, nothing is downloaded
	@$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@$(BIN)/python -m pytest -q tests/docs/test_site.py
	@echo "docs/_build/html/index.html"

bench: setup ## what quantising, exporting, training and inference cost, as ratios (QUESTIONS="quantize growth")
	@$(BIN)/python -m benchmarks $(QUESTIONS)

COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet
lock: setup ## pin every requirement with hashes, without index URLs
	@$(BIN)/python -m pip install --quiet uv
	@$(COMPILE) --extra dev pyproject.toml -o requirements/dev.txt
	@$(COMPILE) --extra worker --extra targets --overrides docker/cpu.overrides.txt pyproject.toml docker/cpu.in -o requirements/worker-cpu.txt
	@$(COMPILE) --extra worker --extra targets pyproject.toml docker/gpu.in -o requirements/worker-gpu.txt
	@$(COMPILE) docker/build.in -o requirements/build.txt
	@$(COMPILE) docker/mlflow.in -o requirements/mlflow.txt
	@for end in $(ENDS); do $(COMPILE) --extra airflow --extra docker --extra kubernetes pyproject.toml requirements/airflow-$$end.in -o requirements/airflow-$$end.txt; done

clean: ## remove .venv, the site and what the demo wrote
	@rm -rf $(VENV) $(ENDS:%=.venv-airflow-%) .demo docs/_build
