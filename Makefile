# Everything runs in .venv, which is built from requirements.txt and pyproject.toml when it is missing or stale.
# Another interpreter: make PYTHON=/path/to/python3.12 .venv

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python3.13; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)
RUN := .venv/bin/python -m

# Huge pages for what a step allocates: with small ones a CPU spends a third of a training step on
# page faults. Other C libraries than glibc ignore it.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help demo demo-tasks emoji test lint bench stability clean .venv

help:
	@echo 'make demo       train, sample and evaluate on the embedded data, end to end, into runs/demo'
	@echo 'make demo-tasks finetune the demo to captions and super-resolution, and show every task'
	@echo 'make emoji      train, evaluate and draw on the embedded emoji, into runs/emoji'
	@echo 'make test       run the tests'
	@echo 'make lint       check format, style and types'
	@echo 'make bench      a page of speeds; AGAINST=REV: beside that commit, PEER=PYTHON: beside peers'
	@echo 'make stability  the paper'\''s Figure 4b: which stabiliser float16 needs for what'
	@echo 'make clean      delete .venv, the caches and runs/demo (no other run)'
	@echo 'make .venv      only build the environment'

# A killed command continues where it stopped when make demo is started again.
demo: .venv
	$(RUN) cogview_jax.train --config configs/demo_codec.py --workdir runs/demo/codec
	$(RUN) cogview_jax.prepare --config configs/demo.py --workdir runs/demo
	$(RUN) cogview_jax.train --config configs/demo.py --workdir runs/demo
	$(RUN) cogview_jax.sample --bundle runs/demo/bundle --task text_to_image \
		--prompts configs/demo_prompts.txt --out runs/demo --seed 0
	$(RUN) cogview_jax.evaluate --bundle runs/demo/bundle --benchmark shapes \
		--out runs/demo/report.json

runs/demo/bundle/bundle.json:
	$(MAKE) demo

# Goes on where it stopped, too.
demo-tasks: .venv runs/demo/bundle/bundle.json
	$(RUN) cogview_jax.train --config configs/demo_caption.py --workdir runs/demo/caption
	$(RUN) cogview_jax.prepare --config configs/demo_superres.py --workdir runs/demo/superres
	$(RUN) cogview_jax.train --config configs/demo_superres.py --workdir runs/demo/superres
	$(RUN) cogview_jax.evaluate --bundle runs/demo/caption/bundle --out runs/demo/caption/report.json
	$(RUN) cogview_jax.evaluate --bundle runs/demo/superres/bundle --out runs/demo/superres/report.json
	$(RUN) cogview_jax.evaluate --bundle runs/demo/bundle --rerank_with runs/demo/caption/bundle \
		--out runs/demo/reranked.json
	$(RUN) bench.tasks_figure --out runs/demo/tasks.png

# Goes on where it stopped, too.
emoji: .venv
	$(RUN) cogview_jax.train --config configs/emoji_codec.py --workdir runs/emoji/codec
	$(RUN) cogview_jax.prepare --config configs/emoji.py:small --workdir runs/emoji
	$(RUN) cogview_jax.train --config configs/emoji.py:small --workdir runs/emoji
	$(RUN) cogview_jax.evaluate --bundle runs/emoji/bundle --benchmark emoji --num_prompts 250 \
		--out runs/emoji/report.json
	$(RUN) bench.emoji_figure --bundle runs/emoji/bundle --out runs/emoji/emoji.png

# Two files of tests at a time, in the order of their names: those of bench/, which mostly wait, come
# first and not alone at the end. One file shows more: .venv/bin/python -m pytest FILE
test: .venv
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

# AGAINST=REV measures that commit in turns with this tree, and PEER=PYTHON, an interpreter that has
# torch, transformers and ctranslate2, these.
bench: .venv
	$(RUN) bench.page $(if $(AGAINST),--against $(AGAINST)) $(if $(PEER),--peer_python $(PEER))

# A variant that has a record is not run again.
stability: .venv
	$(RUN) cogview_jax.train --config configs/demo_codec.py --workdir runs/stability/codec \
		--config.train.steps=100 --config.train.sample_every=0 \
		--config.data.source.path=runs/stability/data --config.data.source.train_count=2000
	$(RUN) cogview_jax.prepare --config configs/stability.py:both --workdir runs/stability
	$(RUN) bench.stability

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: .venv/.stamp

# The project itself is installed too, editable, so that `cogview` works from any folder. The stamp is
# written last: an environment whose installation was killed has none and is rebuilt.
.venv/.stamp: requirements.txt pyproject.toml
	@'$(PYTHON)' -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "error: PYTHON='$(PYTHON)': expected Python 3.11 to 3.13 (make PYTHON=/path/to/python ...)" >&2; \
		exit 2; }
	@echo 'installing the requirements into .venv: a minute or so'
	@test -f $@ || '$(PYTHON)' -m venv --clear .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
