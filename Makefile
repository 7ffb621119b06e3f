# Everything happens in .venv, which the first target that needs it makes. PYTHON=python3.12 make demo picks another.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test test-all test-release lint docs-check bench clean

demo: .venv/installed
	rm -rf runs/demo
	$(RUN) -m recipes run image_classification --out runs/demo
	@echo "  Try next, after '. .venv/bin/activate':"
	@echo "  your own photos   python -m recipes run image_classification --data folder:PHOTOS --out runs/mine"
	@echo "  ImageNet weights  python -m recipes run image_classification --data folder:PHOTOS --source keras:ResNet50 --out runs/resnet50"
	@echo "  serving           python -m recipes serve runs/demo"

test: .venv/installed
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow and not network and not release" --durations 40

# With whole runs and real data: up to 50 minutes on 2 cores.
test-all: .venv/installed
	$(RUN) -m pytest -n 2 --dist loadfile -m "not network and not release" --durations 40

# What is heavy and seldom breaks: fuzzing, servers under load, other installations. GitHub runs it each night.
test-release: .venv/installed
	$(RUN) -m pytest -m "release"

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo

# Numbers in the pages that no results file holds, and rows that other code has measured. Trains nothing.
docs-check: .venv/installed
	$(RUN) benchmarks/docs_check.py

# Needs ../shared/data; hours on 2 cores. Each script alone: see its first lines.
bench: .venv/installed
	$(RUN) benchmarks/prepare_data.py --out ../prepared_data
	$(RUN) benchmarks/prepare_speech.py --out ../prepared_data/fsdd
	$(RUN) benchmarks/make_photos.py ../prepared_data/photos_12mp
	$(RUN) benchmarks/make_photos.py ../prepared_data/photos_500 --count 10000 --width 500
	$(RUN) benchmarks/stages.py
	$(RUN) benchmarks/quick_commands.py
	$(RUN) benchmarks/decoding.py
	$(RUN) benchmarks/side_by_side.py
	$(RUN) benchmarks/checks.py
	$(RUN) benchmarks/hub_layer.py
	$(RUN) benchmarks/hub_source.py
	$(RUN) benchmarks/kill_and_resume.py
	$(RUN) benchmarks/serving.py
	$(RUN) -m pip install --quiet -r requirements-convert.txt
	$(RUN) benchmarks/conversions.py
	$(RUN) benchmarks/older_tensorflow.py
	$(RUN) benchmarks/padding.py
	$(RUN) benchmarks/word_counts.py
	$(RUN) benchmarks/choose_class_weights.py
	$(RUN) benchmarks/choose_few_shot.py
	$(RUN) benchmarks/detection_steps.py
	$(RUN) benchmarks/new_voice.py
	$(RUN) benchmarks/measure.py

clean:
	rm -rf .venv runs/demo

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install -r requirements.txt
	touch $@
