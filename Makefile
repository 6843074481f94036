# make quickstart   train and test MTL on a data set that needs no download
# make test         what a change must pass
# make test-long    what takes hours: runs under load, learning
# make lint         style
# make wheel        write a wheel into dist
# make clean        remove what the targets above made

PYTHON ?= python3
VENV ?= .venv
# Data sets that are built here; any folder of your own serves as well.
export MTL_JAX_DATA ?= $(CURDIR)/.data

.PHONY: quickstart test test-long lint wheel clean

quickstart: $(VENV)/installed
	$(VENV)/bin/mtl-jax --config=quickstart \
	  --workdir=runs/quickstart

test: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -n 2 --dist=worksteal

test-long: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest tests/long -v

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .

wheel: $(VENV)/installed
	rm -rf build  # setuptools would pack what an earlier one left there
	rm -f dist/mtl_jax-*.whl  # who installs takes the one that is there
	$(VENV)/bin/python -m pip wheel --quiet --no-deps -w dist .

$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .data .cache runs build dist *.egg-info
