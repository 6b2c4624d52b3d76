# Every target works alone from a fresh clone: it installs what it needs into .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out

# Nothing of the caller's environment may leak into ours: neither an activated one nor pip's habits.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
unexport PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET PIP_PREFIX PIP_CONSTRAINT PIP_REQUIREMENT
# Python compiles what is imported; pip would compile all 20,000 files of the dependencies, for about a minute.
PIP_INSTALL := PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q --no-compile \
	-c constraints.txt

.PHONY: help demo test lint lab notebooks figures bench clean

help:
	@echo "make demo       capture a denoising run of the bundled model, explore and compare it (start here)"
	@echo "make lab        open JupyterLab on the first notebook"
	@echo "make test       lint, types, all tests, all notebooks"
	@echo "make lint       lint and types only"
	@echo "make notebooks  run the notebooks and keep their output"
	@echo "make figures    measure and draw every figure into out/figures, then the README's pictures (needs Chromium)"
	@echo "make bench      time the kernels against every peer present, and measure what capturing costs"
	@echo "make clean      remove out/, .venv and caches"

demo: $(VENV)/.installed
	$(BIN)/dlm-lens demo --out $(OUT)/demo

test: lint
	$(BIN)/python -m pytest tests -n auto --maxprocesses=4 --dist worksteal --durations=10
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest notebooks --nbmake --nbmake-timeout=600 --durations=0 \
		-n auto --maxprocesses=4 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(VENV)/.installed
	$(BIN)/jupyter lab notebooks/01_quickstart.ipynb

notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/execute.py

figures: $(VENV)/.installed-dev
	@set -e; scripts=$$(grep -l '^def measure(' figures/*.py); count=$$(echo $$scripts | wc -w); number=0; \
	for script in $$scripts; do \
		number=$$((number + 1)); echo "[$$number/$$count] $$script"; \
		$(BIN)/python $$script --out $(OUT)/figures; \
	done
	$(BIN)/python figures/gallery.py
	$(BIN)/python figures/readme.py

bench: $(VENV)/.installed
	@mkdir -p $(OUT)
	$(BIN)/python kernels/bench/run.py --out $(OUT)/kernels.json
	$(BIN)/python -m dlm_lens.measure.capture_memory
	$(BIN)/python -m dlm_lens.measure.capture_cost --out $(OUT)/capture-cost.json

# The stamps are newer than pyproject.toml and constraints.txt exactly when the installation is up to date.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing dlm-lens into $(VENV) (about 2 minutes; 2.5 GB, or 7 GB with CUDA) ..."
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing dlm-lens and its tests into $(VENV) (a few minutes; 3 GB, or 7.5 GB with CUDA) ..."
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "dlm-lens needs Python 3.11 or newer, but there is no" \
		"'$(PYTHON)' here; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dlm-lens needs Python 3.11" \
		"or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) could not create $(VENV);" \
		"on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

clean:
	rm -rf $(OUT) $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
