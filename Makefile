# make search   set everything up and run the main job
# make test     set everything up and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: search setup test test-slow official wheel-test test-oldest check style cards docs clean

search: $(READY)
	$(BIN)/accelerate launch -m search

# the environment alone
setup: $(READY)

# one worker per core; files stay together, because their fixtures are shared
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# transformers' own common model tests, from its source distribution; needs the package registry
official: $(READY)
	$(BIN)/python tests/official/fetch.py
	$(BIN)/python -m pytest -m official -W ignore::pytest.PytestUnknownMarkWarning tests/official

# the wheel alone in an empty environment, every command from an empty folder; PYTHONS="python3.10 python3.13" takes several
PYTHONS ?= $(PYTHON)
wheel-test:
	for python in $(PYTHONS); do $$python tests/installed/check.py || exit 1; done

# the same with the oldest versions that pyproject.toml allows
test-oldest:
	for python in $(PYTHONS); do $$python tests/installed/check.py --oldest || exit 1; done

# what the machine can see without running anything: style, format, types
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# model_cards/ anew, from result files and benchmarks/model_facts.json
cards: $(READY)
	$(BIN)/python benchmarks/model_cards.py

# the site in site/, from docs/ and the docstrings; warnings are errors
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# torch comes first: with it installed, no other package asks for its largest build
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
