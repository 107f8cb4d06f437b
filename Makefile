# setup  everything that development needs, in .venv      demo      tune the built-in model and show that it got better
# test   fast tests (under 10 minutes on 2 cores)          test-all  the slow ones too; WORKERS=2 processes
# check  format, lint, types and tests, as CI runs them
PYTHON ?= python3.11
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# named by the list of modules: another list, another set-up
DEV := $(VENV)/.dev-$(shell find dragon rewards exemplars -name '*.py' | LC_ALL=C sort | cksum | cut -d' ' -f1)
export HF_HUB_DISABLE_TELEMETRY := 1

# torch and the others, by name only: looking for them takes no time, importing them takes seconds
RUNTIME := torch numpy scipy safetensors diffusers huggingface_hub transformers tokenizers accelerate peft soundfile soxr pydantic pydantic_core tyro yaml rich matplotlib PIL tensorboard torchsde
HAS_RUNTIME = $(BIN)/python -c "import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in '$(RUNTIME)'.split()))"

# glibc's malloc gives freed blocks back at once and takes them again page by page: 19 % of a CPU run. It reads these
# when the process starts.
MALLOC := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456

.PHONY: setup demo test test-all test-laion check format lint types clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# editable_mode=strict links single files, so that type checkers and editors see rewards/ inside dragon
setup: $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' --config-settings editable_mode=strict
	@rm -f $(VENV)/.dev*
	@touch $(DEV)

# what test, lint and types need: set up once, and again when dependencies change or modules come and go
$(DEV): pyproject.toml
	@$(MAKE) --no-print-directory setup

demo: $(BIN)/python
	@$(HAS_RUNTIME) || $(BIN)/python -m pip install -q --disable-pip-version-check -e . --config-settings editable_mode=strict
	$(MALLOC) HF_HUB_OFFLINE=1 $(BIN)/python -m dragon train configs/demo.yaml $(ARGS)

# one thread a process: threads of two processes that wait for each other take many times as long
test: $(DEV)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

test-all: $(DEV)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal \
		-m "slow or not slow" --timeout=3600 $(ARGS)

# the authors' CLAP package beside our readers of its weights: needs numpy below 2, so an environment of its own
test-laion:
	$(PYTHON) -m venv build/laion
	build/laion/bin/python -m pip install -q --disable-pip-version-check -e '.[laion]' 'pytest>=8.0' 'pytest-timeout>=2.3'
	HF_HUB_OFFLINE=1 build/laion/bin/python -m pytest -q -m slow --timeout=3600 $(ARGS) tests/encoders/test_laion.py

check: lint types test

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# One tree of links as it is installed: `mypy -p dragon` would skip rewards/ and exemplars/ without a word.
types: $(DEV)
	rm -rf build/types && mkdir -p build/types/dragon
	ln -s $(CURDIR)/dragon/* $(CURDIR)/rewards $(CURDIR)/exemplars build/types/dragon/
	ln -s $(CURDIR)/tests build/types/tests
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache dragon tests

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
