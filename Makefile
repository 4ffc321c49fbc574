# make demo    install into .venv, fetch the demo model, open it
# make test    everything that must be green: lint, types, layers, README, tests
# make slow    the tests that take minutes        make gpu     what only a CUDA device shows, as gpu.json
# make architectures   operate on a tiny model of every type that transformers can build, and write what came of it
# make reproduce   run the shipped recipes with their controls, several seeds, and write what they gave (some hours)
# make format  let ruff rewrite the code          make readme  write the generated tables again

PYTHON  ?= python3
WORKERS ?= 2
BIN     := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := test
.PHONY: demo test slow gpu format readme architectures reproduce

demo: .venv/demo.installed
	$(BIN)/surgeon demo --open

test: .venv/dev.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/cog --check README.md recipes/README.md
	$(BIN)/pytest -n $(WORKERS)

slow: .venv/dev.installed
	$(BIN)/pytest -m slow

gpu: .venv/dev.installed
	$(BIN)/pytest -m gpu || [ $$? -eq 5 ]  # 5: no test carries the marker
	$(BIN)/python -m tests.benchmarks.gpu --out gpu.json

architectures: .venv/dev.installed
	$(BIN)/python -m tests.architectures.conformance --processes $(WORKERS)

reproduce: .venv/dev.installed
	$(BIN)/python -m tests.reproduce --again
	$(BIN)/cog -r recipes/README.md

format: .venv/dev.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

readme: .venv/dev.installed
	$(BIN)/cog -r README.md recipes/README.md

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'surgeon needs Python 3.11 or newer; say which: make PYTHON=python3.12'; exit 1; }
	# Half a venv, as when Debian's python3-venv is missing, must not pass for a whole one next time.
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/%.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing into .venv; the first time this takes a few minutes'
	$(INSTALL) --editable '.[demo$(if $(filter dev,$*),$(comma)dev)]'
	@touch $@

comma := ,
