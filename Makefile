# `make demo` and `make test` set up what they need in .venv and are quick the second time.
# Override with make PYTHON=/path/to/python3.11, make test TESTS=tests/models, make test WORKERS=1.
# BORT_TEST_DATA=FOLDER make test also runs the few tests that want real data (laid out as for benchmarks).
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTS ?= tests
WORKERS ?= 2
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.10 python3.9 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' \
	>/dev/null 2>&1 && { command -v $$p; break; }; done)

.PHONY: demo test setup bench-setup lint clean help

help:
	@echo "make demo         search, distillation and Agora on text that Python carries; no data, no network after set-up"
	@echo "make test         the test suite"
	@echo "make lint         ruff over the tree, mypy over bort/; no network after set-up"
	@echo "make setup        only the environment in .venv"
	@echo "make bench-setup  also the peers that the benchmarks compare with (PyTorch, transformers)"
	@echo "make clean        remove .venv and demo-run"

setup: $(READY)

$(READY): setup.py
	@test -n "$(PYTHON)" || { echo "error: no Python from 3.9 to 3.12 with venv; install one (Debian: apt-get install python3 python3-venv python3-dev) or use make PYTHON=/path/to/python" >&2; exit 2; }
	@command -v $${CXX:-g++} >/dev/null || { echo "error: no C++ compiler; install g++ (Debian: apt-get install g++) or set CXX" >&2; exit 2; }
	@command -v cmake >/dev/null || { echo "error: no cmake, which Horovod is built with (Debian: apt-get install cmake)" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON); logs in $(VENV)/*.log"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory step NAME=tools RUN="pip install --upgrade 'pip>=23' 'setuptools<81' wheel cython"
	@$(MAKE) --no-print-directory step NAME=packages RUN="pip install -e '.[cpu,test,lint]'"
	@$(BIN)/python -m bort.numpy_aliases >/dev/null
	@$(BIN)/python -c 'import horovod.mxnet' >/dev/null 2>&1 || { \
		$(MAKE) --no-print-directory step NAME=horovod-needs RUN="pip install cloudpickle psutil pyyaml packaging cffi" && \
		PYTHONPATH=$(CURDIR)/.ci/numpy-aliases HOROVOD_WITH_MXNET=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 \
		HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 \
		$(MAKE) --no-print-directory step NAME=horovod RUN="pip install --no-build-isolation horovod==0.28.1"; }
	@touch $(READY)

# One step of the set-up: quiet when it works, the end of its log when it does not.
step:
	@echo "  $(NAME) ..."
	@$(BIN)/python -m $(RUN) > $(VENV)/$(NAME).log 2>&1 || { tail -n 25 $(VENV)/$(NAME).log >&2; \
		echo "error: setting up failed at '$(NAME)'; the whole log is $(VENV)/$(NAME).log" >&2; exit 2; }

demo: $(READY)
	@$(BIN)/python -m bort.demo --output demo-run

test: $(READY)
	@$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist worksteal -q

lint: $(READY)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

bench-setup: $(READY)
	@$(MAKE) --no-print-directory step NAME=bench RUN="pip install -e '.[bench]'"

clean:
	rm -rf $(VENV) demo-run
