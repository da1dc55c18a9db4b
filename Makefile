# One command each; every target sets up what it needs. See README.md.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Without an NVIDIA GPU the tested set of CPU packages is installed; with one, pip's own choice.
CONSTRAINT := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo constraints-cpu.txt)

DEMO_DATA := runs/demo-data
DEMO_RUN := runs/demo

PRIVATE_DATA := runs/demo-private-data
PRIVATE_RUN := runs/demo-private
PUBLIC_RUN := runs/demo-public
START := runs/demo-private-start

.PHONY: help setup demo demo-private test check bench clean

help:
	@echo "make demo    a federation of three hospitals on synthetic mammograms, with a report (about 5 minutes after installation)"
	@echo "make demo-private  the same with patient-level differential privacy, beside a run without, and its audit (about 5 minutes)"
	@echo "make test    all tests"
	@echo "make check   format, lint, types, import layers"
	@echo "make bench   benchmarks, as tables"
	@echo "make clean   remove what the above made"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit("Consilium needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || (echo "The venv module of $(PYTHON) does not work here (on Debian it is the package python3-venv)." >&2; exit 1)
	$(if $(CONSTRAINT),PIP_CONSTRAINT=$(CONSTRAINT)) $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP) $(DEMO_DATA)/.complete
	@rm -rf $(DEMO_RUN)
	CONSILIUM_DEMO_DATA=$(abspath $(DEMO_DATA)) $(BIN)/consilium-server local configs/demo.yaml sites/demo/* --run-dir $(DEMO_RUN)
	$(BIN)/consilium-server learned $(DEMO_RUN)

# Synthetic mammograms of three hospitals, made once.
$(DEMO_DATA)/.complete: $(STAMP) $(wildcard client/phantom/*.py)
	@rm -rf $(DEMO_DATA) && mkdir -p $(DEMO_DATA)
	@echo "Writing synthetic mammograms of three hospitals into $(DEMO_DATA) ..."
	@$(BIN)/consilium-site phantom $(DEMO_DATA)/anna --patients 100 --seed 1 --scanner halide
	@$(BIN)/consilium-site phantom $(DEMO_DATA)/bertha --patients 100 --seed 2 --scanner cassette
	@$(BIN)/consilium-site phantom $(DEMO_DATA)/clara --patients 100 --seed 3 --scanner panel
	@touch $@

demo-private: $(STAMP) $(PRIVATE_DATA)/.complete
	@rm -rf $(PUBLIC_RUN) $(START) $(PRIVATE_RUN) $(PRIVATE_RUN)-plain $(PRIVATE_RUN).trust
	@echo "A public network, trained on synthetic mammograms of nobody's patients ..."
	CONSILIUM_DEMO_DATA=$(abspath $(PRIVATE_DATA)) $(BIN)/consilium-server local configs/demo-public.yaml sites/demo-public/* --run-dir $(PUBLIC_RUN)
	$(BIN)/consilium-server export $(PUBLIC_RUN) $(START)/public.safetensors --without-head --public \
	  --study configs/demo-private.yaml --study-out $(START)/demo-private.yaml
	$(BIN)/consilium-server export $(PUBLIC_RUN) $(START)/public.safetensors --without-head --public \
	  --study configs/demo-private-plain.yaml --study-out $(START)/demo-private-plain.yaml
	@echo "Three hospitals train its last layer with differential privacy ..."
	CONSILIUM_DEMO_DATA=$(abspath $(PRIVATE_DATA)) $(BIN)/consilium-server local $(START)/demo-private.yaml sites/demo-private/* --run-dir $(PRIVATE_RUN)
	@echo "... and without, to see what it costs:"
	CONSILIUM_DEMO_DATA=$(abspath $(PRIVATE_DATA)) $(BIN)/consilium-server local $(START)/demo-private-plain.yaml sites/demo/* --run-dir $(PRIVATE_RUN)-plain
	$(BIN)/consilium-server compare $(PRIVATE_RUN) $(PRIVATE_RUN)-plain
	$(BIN)/consilium-audit verify $(PRIVATE_RUN) --trust $(PRIVATE_RUN).trust

$(PRIVATE_DATA)/.complete: $(STAMP) $(wildcard client/phantom/*.py)
	@rm -rf $(PRIVATE_DATA) && mkdir -p $(PRIVATE_DATA)
	@echo "Writing synthetic mammograms of three hospitals and a public collection into $(PRIVATE_DATA) ..."
	@$(BIN)/consilium-site phantom $(PRIVATE_DATA)/anna --patients 200 --seed 21 --scanner halide
	@$(BIN)/consilium-site phantom $(PRIVATE_DATA)/bertha --patients 200 --seed 22 --scanner panel
	@$(BIN)/consilium-site phantom $(PRIVATE_DATA)/clara --patients 200 --seed 23 --scanner halide
	@$(BIN)/consilium-site phantom $(PRIVATE_DATA)/published --patients 200 --seed 24 --scanner cassette
	@touch $@

# Three files at a time on two cores: half of what takes long is real processes that wait for each other.
test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
