# Every target sets up what it needs: `make demo` in a fresh clone makes the environment, then runs the demo.
#
#   make demo         rank, forget in sequence and evaluate on a small data set; prints where the report is
#   make test         step check, notebooks, pytest (the site in a browser among it)
#   make test-gpu     the notebooks, where there is a GPU for the cells that need one
#   make gpu          what only a GPU can show: tests and speed in 8 minutes, as a table
#   make coverage     which lines of rsu do the API notebooks and pytest run? Slow
#   make test-wheel   the wheel in an environment of its own, with the newest of everything
#   make lab          the tutorials in JupyterLab
#   make docs         the documentation, into _docs
#   make preview      builds the documentation and serves it on this machine; prints the address
#   make export       notebooks -> rsu/, README.md
#   make clean        strips the notebooks of what makes diffs long: run numbers, metadata
#   make outputs NB=nbs/core/02_data.ipynb    runs one notebook and stores its outputs
#   make check        the step check alone: is rsu/ what the notebooks export, are they clean?
#   make readme       README.md alone, from nbs/index.ipynb

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: demo test test-gpu gpu coverage test-wheel lab docs preview export clean outputs check readme
# The steps of `make test` print one after the other, and its last line is pytest's verdict.
.NOTPARALLEL:

BIN := .venv/bin
ENV := .venv/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# torch's wheels are large, and uv gives up after 30 seconds without an answer.
export UV_HTTP_TIMEOUT := 300
# uv brings its own list of certificates: trust what the machine trusts, as pip does.
export UV_SYSTEM_CERTS := true
# uv leaves compiling to the first import. Where Python is told to write nothing, each import would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE
# IPython would add the packages of an environment that is active elsewhere, and start a second measurement of coverage.
unexport VIRTUAL_ENV

# One thread a process: the tests run several at once, which would wait for one another, and small networks gain nothing.
export OMP_NUM_THREADS ?= 1
# Asked without it: nproc takes OMP_NUM_THREADS for the number of processors.
JOBS := $(shell env -u OMP_NUM_THREADS nproc)

demo: $(ENV)
	rsu run --data digits --forget mislabelled:60 --ranker lira --references 8 --algorithm neggradplus --groups 3 \
	    --train-epochs 40 --out runs/demo

# The files that take longest go first: pytest-xdist gives each to one process, and the last would keep the others waiting.
LONG := $(patsubst %,tests/test_%.py,cli tune forget kill bank data site gpu_script)
test: check
	python .ci/notebooks.py $(JOBS)
	python -m pytest $(LONG) $(filter-out $(LONG),$(wildcard tests/test_*.py)) -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-gpu: $(ENV)
	python -c "import sys, torch; torch.cuda.is_available() or sys.exit('No CUDA device here: nothing was tested.')"
	python .ci/notebooks.py 1

gpu: $(ENV)
	python .ci/gpu.py

# Child processes write their measurements beside those of the first, whatever folder they run in.
coverage: export COVERAGE_FILE := $(CURDIR)/.coverage
coverage: $(ENV)
	coverage erase
	ls nbs/*/[0-9]*.ipynb | grep -v tutorials/ | xargs -P $(JOBS) -n 1 nice coverage run .ci/cover.py
	nice coverage run -m pytest -q -n $(JOBS) --dist loadfile
	coverage combine -q
	coverage report --sort=cover

test-wheel: $(ENV)
	.ci/wheel

docs: $(ENV)
	python .ci/site.py

preview: docs
	python -u -m http.server 0 --bind 127.0.0.1 --directory _docs

export: $(ENV)
	nbdev_export
	mkdir -p rsu/templates && cp nbs/_templates/*.ipynb rsu/templates/ && cp nbs/settings.json rsu/
	python .ci/readme.py

lab: $(ENV)
	jupyter lab nbs/tutorials/01_quickstart.ipynb

# nbdev passes over folders that begin with _, so the templates are named.
clean: $(ENV)
	nbdev_clean
	for o in nbs/_templates/*.ipynb; do nbdev_clean --fname $$o; done

outputs: $(ENV)
	python .ci/outputs.py $(NB)

check: $(ENV)
	python .ci/step.py
	ruff check -q

readme: $(ENV)
	python .ci/readme.py

# The stamp is written last and taken away first: an installation cut short is begun anew, never trusted.
# uv, because it installs torch's 6 GB in half a minute, and a second time by links to its cache in seconds.
$(ENV): settings.ini setup.py pyproject.toml
	[ -e $@ ] || { rm -rf .venv; python3 -m venv .venv; }
	rm -f $@
	pip install -q uv
	uv pip install -q --python $(BIN)/python -e '.[dev]'
	touch $@
