# `make demo` runs the whole pipeline on a rendered world, `make test` the tests. Both install into .venv first.
PYTHON ?= python3
SEED ?= 7
ITEMS ?= 24
CONFIG ?= demo
DEMO := build/demo
TRAIN := build/train-demo
RUN := .venv/bin/python
EMBEDDERS := b5a b5b b6 b7

.PHONY: demo test test-slow check bench train-demo lock clean

demo: .venv/.installed
	$(RUN) -m training.demo.world --output $(DEMO)/world --seed $(SEED) --items $(ITEMS)
	$(RUN) -m export.build --pipeline demo --checkpoints training/demo/checkpoints --output $(DEMO)/model_repository
	rm -rf $(DEMO)/features
	.venv/bin/livematch run --repository $(DEMO)/model_repository --images $(DEMO)/world/image \
		--videos $(DEMO)/world/video --truth $(DEMO)/world --rule contest --output $(DEMO)

test: .venv/.installed
	$(RUN) -m pytest

test-slow: .venv/.installed
	$(RUN) -m pytest -m slow

check: .venv/.installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

# Runs all measurements briefly, then writes the report. CONFIG=production uses the full networks with random weights.
# They take seconds per image on a CPU, so it measures fewer images for longer. perf_analyzer has to be downloaded; if
# that fails, the report is written without it.
bench: FEW = $(if $(filter production,$(CONFIG)),--pictures 8 --window-s 10)
bench: .venv/.installed
	$(RUN) -m benchmarks.baseline --config $(CONFIG) $(if $(FEW),--clips 1 --frames 4 --rounds 2)
	$(RUN) -m benchmarks.concurrency --config $(CONFIG) $(if $(FEW),--clips 4 --frames 4 --rounds 1)
	$(RUN) -m benchmarks.throughput --config $(CONFIG) $(FEW) $(if $(FEW),--concurrency 1 4)
	$(RUN) -m benchmarks.latency --config $(CONFIG) $(FEW) $(if $(FEW),--peak-concurrency 4 --load 0.5 --duration-s 240)
	$(RUN) -m benchmarks.models --config $(CONFIG) $(FEW) $(if $(FEW),--concurrency 4 --rounds 1)
	$(RUN) -m benchmarks.search
	-$(RUN) -m benchmarks.perf_analyzer --config $(CONFIG) $(or $(FEW),--window-s 2) $(if $(FEW),--rounds 1)
	$(RUN) -m benchmarks.report --results build/benchmarks

# Trains the demo's checkpoints again, on a world that no demo shows, two trainings at a time with one core each.
# Continues where it was stopped; a different world starts over. Needs detectron2 in .venv (see training/README.md).
train-demo: .venv/.installed
	$(RUN) -c "import detectron2"
	$(RUN) -m training.demo.world --output $(TRAIN)/world --seed 101 --items 600 --render-every 20
	$(RUN) -m training.embedder.crops --data $(TRAIN)/world --cache $(TRAIN)/cache --max-side 240
	OMP_NUM_THREADS=1 $(MAKE) -j2 $(TRAIN)/detector.pth $(EMBEDDERS:%=$(TRAIN)/%.trained)
	cp $(TRAIN)/detector.pth $(TRAIN)/detector.json $(TRAIN)/embedder_*.pth $(TRAIN)/embedder_*.json \
		training/demo/checkpoints/

# A stopped training may only resume if what it saved is newer than the world.
$(TRAIN)/detector.pth: $(TRAIN)/world/world.json
	[ $(TRAIN)/last.pt -nt $< ] || rm -f $(TRAIN)/last.pt
	$(RUN) -m training.detector.train --config demo --data $(TRAIN)/world --output $(TRAIN) --resume

$(TRAIN)/%.trained: $(TRAIN)/world/world.json
	[ $(TRAIN)/$*.resume.pth -nt $< ] || rm -f $(TRAIN)/$*.resume.pth
	$(RUN) -m training.embedder.train --config demo-$* --data $(TRAIN)/world --output $(TRAIN) --resume
	touch $@  # the checkpoint is there after the first epoch

# Pins every package again. pytriton asks for numpy < 2; the local server makes its Python backend work with numpy 2.
lock: .venv/.installed
	mkdir -p build
	echo "numpy>=2" > build/override.txt
	.venv/bin/uv pip compile pyproject.toml --quiet --extra server --extra export --extra training \
		--extra evaluation --extra benchmarks --extra milvus --extra dev --override build/override.txt \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.txt

# nvidia-pytriton, which provides the local server's Python backend, supports Python up to 3.13.
.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit( \
		'livematch needs Python 3.11 to 3.13, $(PYTHON) is %d.%d; make PYTHON=python3.13 uses another' % v[:2])"
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip install --quiet --python $(RUN) --no-deps --requirements requirements.txt
	.venv/bin/uv pip install --quiet --python $(RUN) --no-deps --editable .
	touch $@

clean:
	rm -rf .venv build client/livematch.egg-info
