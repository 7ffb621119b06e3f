# Everything happens in .venv, which the first target that needs it makes. PYTHON=python3.12 make demo picks another.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test test-all lint bench clean

demo: .venv/installed
	rm -rf runs/demo
	$(RUN) -m recipes run image_classification --baselines frozen,scratch --out runs/demo

test: .venv/installed
	$(RUN) -m pytest -m "not slow"

test-all: .venv/installed
	$(RUN) -m pytest

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

bench: .venv/installed
	$(RUN) benchmarks/measure.py

clean:
	rm -rf .venv runs

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install -r requirements.txt
	touch $@
