# One command a chore. `make demo` and `make test` need python3 >= 3.10 (with venv), g++ and pip's registry, nothing else:
# they make .venv, install what is missing and compile the kernels. A second run installs nothing again.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo text jobs test bench cpp lint gpu docs clean

PYTHON ?= python3
TORCH ?= torch==2.13.0
TEST_ARGS ?=
TEST_JOBS ?= 2
BENCH_ARGS ?=
export MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/stamps
PIP := $(PY) -m pip --disable-pip-version-check install
KERNEL_SOURCES := python/fusum/ops/schema.def $(shell find csrc -type f)
CXX_FILES = $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# A compiler's command line becomes "compiling FILE"; all other output, errors too, stays as it is.
SHORTEN := sed -u -E 's/^( *\[[0-9]+\/[0-9]+\]) .* -c ([^ ]+) .*/\1 compiling \2/'
say = @echo; echo "== $(1)"

demo: $(STAMP)/kernels $(STAMP)/viz $(STAMP)/jobs
	$(call say,demo: train - save - explain by jobs - check - draw; results go to demo_out/)
	$(PY) -u examples/digits.py

text: $(STAMP)/kernels $(STAMP)/text
	$(call say,text: load a sentence encoder - explain - save - explain the file - check - draw; results go to demo_out/)
	$(PY) -u examples/text.py

jobs: $(STAMP)/kernels $(STAMP)/viz $(STAMP)/text $(STAMP)/jobs
	$(call say,jobs: a table of patients and one of sentences - fusum run - check; results go to demo_out/)
	$(PY) -u examples/jobs/tabular/run.py
	$(PY) -u examples/jobs/text/run.py

# As many processes as there are cores, so one thread each.
test: export OMP_NUM_THREADS := 1
test: $(STAMP)/kernels $(STAMP)/test
	$(call say,pytest)
	$(PY) -m pytest -n $(TEST_JOBS) $(TEST_ARGS)
	$(call say,pytest of the rules without compiled kernels: the interception in pure Python)
	FUSUM_BACKEND=reference $(PY) -m pytest -n $(TEST_JOBS) $(TEST_ARGS) tests/test_deeplift.py tests/test_deeplift_shap.py \
	  tests/test_guided.py tests/test_lrp.py tests/test_rules_threads.py

bench: $(STAMP)/kernels $(STAMP)/bench $(STAMP)/viz $(STAMP)/jobs
	$(call say,benchmarks: each asserts equal results and then times; table and CSV go to benchmarks/results/)
	$(PY) -u -m benchmarks $(BENCH_ARGS)
	$(call say,jobs from Parquet to Parquet)
	$(PY) -u -m benchmarks.jobs
	$(call say,estimators of Shapley values: error against evaluations)
	$(PY) -u -m benchmarks.estimators

lint: $(STAMP)/lint
	$(call say,ruff - mypy - clang-format)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

docs: $(STAMP)/kernels $(STAMP)/docs
	$(call say,API pages into build/docs)
	$(PY) -m pdoc --docformat google --output-directory build/docs fusum

# libfusum without Python, its install tree, and the C++ tests.
cpp: export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
cpp: $(STAMP)/cmake
	$(call say,CMake: configure - build - install into build/cpp/install - test)
	cmake -S . -B build/cpp -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=build/cpp/install \
	  -DCMAKE_PREFIX_PATH="$$($(PY) -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	cmake --build build/cpp --parallel $(MAX_JOBS)
	cmake --install build/cpp
	ctest --test-dir build/cpp --output-on-failure

# On a machine with a GPU, with that machine's own Python (torch with CUDA, pytest): no venv, nothing is downloaded.
gpu: export PYTHONPATH := $(CURDIR)/python
gpu:
	$(call say,CUDA build with $(PYTHON); then pytest and benchmarks on cuda; results go to benchmarks/results/)
	mkdir -p benchmarks/results
	$(PYTHON) setup.py build_ext --inplace 2>&1 | tee benchmarks/results/gpu-build.txt
	$(PYTHON) -m fusum info 2>&1 | tee benchmarks/results/gpu-tests.txt
	failed=0; \
	$(PYTHON) -m pytest $(TEST_ARGS) 2>&1 | tee -a benchmarks/results/gpu-tests.txt || failed=1; \
	$(PYTHON) -u -m benchmarks --device cuda $(BENCH_ARGS) 2>&1 | tee benchmarks/results/gpu.txt || failed=1; \
	exit $$failed

clean:
	rm -rf $(VENV) build demo_out python/*.egg-info python/fusum/_C*.so python/fusum/_build.json
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up, one stamp a step.
$(STAMP)/venv:
	$(call say,making $(VENV) and installing $(TORCH) with the build tools (a large download the first time))
	$(PYTHON) -c 'import sys; sys.exit("fusum needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) setuptools wheel ninja numpy '$(TORCH)'
	mkdir -p $(STAMP) && touch $@

$(STAMP)/package: $(STAMP)/venv setup.py pyproject.toml
	$(call say,installing fusum and compiling its kernels with $(MAX_JOBS) jobs (some minutes))
	$(PIP) --no-build-isolation -v -e . 2>&1 | $(SHORTEN)
	touch $@

# Kernels that changed since, compiled in place; the objects in build/ are kept, so only what changed is compiled.
$(STAMP)/kernels: $(STAMP)/package $(KERNEL_SOURCES)
	@if [ -n "$$(find $(KERNEL_SOURCES) -newer $(STAMP)/package)" ]; then \
	  echo; echo "== compiling changed kernels with $(MAX_JOBS) jobs"; \
	  $(PY) setup.py build_ext --inplace 2>&1 | $(SHORTEN); \
	fi
	$(PY) -m fusum info
	touch $@

# The extras of the installed fusum: pip finds it installed and fetches only what is missing.
$(addprefix $(STAMP)/,viz text jobs test bench lint docs): $(STAMP)/%: pyproject.toml | $(STAMP)/package
	$(call say,installing what fusum[$*] needs)
	$(PIP) 'fusum[$*]'
	touch $@

$(STAMP)/cmake: | $(STAMP)/venv
	$(call say,installing cmake)
	$(PIP) 'cmake>=3.20'
	touch $@
