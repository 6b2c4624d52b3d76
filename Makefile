# Every target works alone from a fresh clone: each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out

# An activated environment of the caller's must not leak into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX

.PHONY: demo test lint lab notebooks figures bench clean chromium

demo: $(VENV)/.installed
	$(BIN)/dlm-lens demo --out $(OUT)/demo

test: $(VENV)/.installed-dev chromium
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python -m pytest tests
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lab: $(VENV)/.installed
	$(BIN)/jupyter lab notebooks/01_quickstart.ipynb

notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/execute.py

figures: $(VENV)/.installed
	$(BIN)/python figures/readme.py

bench: $(VENV)/.installed
	$(BIN)/python -m dlm_lens.measure.capture_memory

# The browser comes from the system; Playwright only drives it.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| echo "No Chromium found: browser tests will be skipped. On Debian: apt-get install chromium"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Without a CUDA driver the CPU wheel of PyTorch is enough, and several GB smaller.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(OUT) $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
