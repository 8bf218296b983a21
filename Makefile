# One command each. `make` lists them. The work is done by scripts/, one file per verb.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

bin := .venv/bin
python_code := nanogrid tests benchmarks examples deploy docs/conf.py docs/pictures celeryconfig.py
demo_images := nanogrid/python:3.9 nanogrid/gcc:11
# Most tests wait for processes of their own, so three at a time fit on two cores; one file stays in one process, and
# files start in the order of their names, the longest (the chaos test) among the first.
parallel := -q -n 3 --dist loadfile --no-loadscope-reorder
# Each build reads every page anew, so that no warning is hidden by an earlier build. They need Python 3.11.
sphinx := $(bin)/python -m sphinx -q -W --keep-going -E -j 2 -d build/docs/trees
# Arguments for pytest: make test ARGS="-k chord -x"
ARGS ?=

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what is missing and start a Docker engine where none answers
	@scripts/setup

.PHONY: images
images: setup ## Pull the runtime images, or build equivalents where no registry answers
	@deploy/images/build --if-unreachable $(demo_images)

.PHONY: demo
demo: setup ## Start the local stack and run functions of every kind on it
	@deploy/images/build --if-unreachable $(demo_images) >/dev/null
	@$(bin)/nanogrid up --detach
	@$(bin)/python examples/demo.py

.PHONY: down
down: ## End the local stack
	@$(bin)/nanogrid down

.PHONY: check
check: ## Format, lint, types, import contract, unit tests and the site: what needs neither Docker nor Redis
	@$(bin)/ruff format --check --quiet $(python_code)
	@$(bin)/ruff check --quiet $(python_code)
	@$(bin)/mypy --no-error-summary
	@MYPYPATH=deploy/images $(bin)/mypy --no-error-summary deploy/images
	@$(bin)/lint-imports --no-logo >/dev/null || { $(bin)/lint-imports; exit 1; }
	@MYPYPATH=docs/pictures $(bin)/mypy --no-error-summary docs/pictures
	@$(bin)/pytest -q -n 2 tests/unit $(ARGS)
	@if $(bin)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then $(MAKE) docs; else echo "docs: not built, Sphinx with MyST needs Python 3.11"; fi

.PHONY: docs
docs: ## Build the documentation site in build/docs/html; a warning or a broken internal link is an error
	@$(sphinx) -b html docs build/docs/html

.PHONY: docs-links
docs-links: ## Check the links of the documentation that lead to the internet
	@$(sphinx) -b linkcheck docs build/docs/links

.PHONY: pictures
pictures: ## Draw the pictures in docs/pictures; scripts/screenshots makes the two screenshots
	@$(bin)/python docs/pictures/draw.py

.PHONY: test
test: ## Set up, make all images, run the whole suite
	@scripts/setup --tests
	@$(MAKE) test-images
	@$(MAKE) check
	@$(bin)/pytest tests --ignore tests/unit -m "not alone and not packages" $(parallel) $(if $(CI),--color=no --durations=15) $(ARGS)
	@$(if $(ARGS),:,$(bin)/pytest tests -q -m alone $(if $(CI),--color=no))

.PHONY: test-packages
test-packages: setup ## Warm runs with large packages in the code (boto3, pandas, scipy, scikit-learn, matplotlib), beside fresh interpreters
	@deploy/images/build nanogrid/python:3.9 >/dev/null
	@$(bin)/pytest -q tests/differential/test_packages.py tests/differential/test_randomness.py -m packages $(ARGS)

.PHONY: test-cpython
test-cpython: setup ## CPython's own tests, warm and in plain docker (ARGS="test_os test_signal" for a part)
	@$(bin)/python -m tests.cpython $(ARGS)

.PHONY: bench
bench: setup ## Measure beside bare processes and Docker's API (ARGS="--quick hello imports" for a part)
	@deploy/images/build nanogrid/gcc:11 nanogrid/python:3.9 >/dev/null
	@$(bin)/python -m benchmarks $(ARGS)

.PHONY: replay
replay: setup ## Replay days of many functions through the tuner (ARGS="--trace FOLDER" for the real trace)
	@$(bin)/python -m benchmarks.replay $(ARGS)

.PHONY: worker-image
worker-image: setup ## Build nanogrid/worker from locked wheels, without network
	@scripts/worker-image

.PHONY: test-images
test-images: ## Make every image that the tests use
	@deploy/images/build >/dev/null
	@scripts/worker-image >/dev/null
	@scripts/moto-image >/dev/null

.PHONY: lock
lock: ## Regenerate requirements/*.txt from pyproject.toml (ARGS=--upgrade for newest versions)
	@scripts/lock $(ARGS)

.PHONY: clean
clean: ## Remove build products and caches; .venv, images and data stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find nanogrid tests examples deploy -name __pycache__ -prune -exec rm -rf {} +
