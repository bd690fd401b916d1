# Two commands: `make demo` (tiles to engine, end to end) and `make test`.
# the first Python of the right version; name another with PYTHON=path
SUITS    = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON  ?= $(shell for python in python3.12 python3.11 python3 python; do $$python -c '$(SUITS)' 2>/dev/null && echo $$python && break; done)
DATA    ?= $(firstword $(wildcard ../shared/data/EuroSAT_RGB.zip) eurosat)
WEIGHTS ?= $(firstword $(wildcard ../shared/data/resnet50_imagenet.safetensors) imagenet)
# with a GPU, all epochs; without, the training part of the 15 minutes that the whole demo may take on two cores
GPU      = $(shell command -v nvidia-smi)
MINUTES ?= $(if $(GPU),,6)
DEMO     = demo

SATTRT = .venv/bin/sattrt

.PHONY: demo test clean

demo: .venv/installed
	rm -rf $(DEMO)/run
	$(SATTRT) data "$(DATA)" --out $(DEMO)/dataset
	$(SATTRT) train $(DEMO)/dataset --out $(DEMO)/run --weights "$(WEIGHTS)" $(if $(MINUTES),--recipe short --minutes $(MINUTES))
	$(SATTRT) export $(DEMO)/run --out engines/eurosat --best-effort
	.venv/bin/python engines/embed.py engines/eurosat
	$(SATTRT) bench engines/eurosat --data $(DEMO)/dataset --out $(DEMO)/report $(if $(GPU),,--config benchmarks/demo.toml)

test: .venv/installed-for-tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	OMP_WAIT_POLICY=passive .venv/bin/pytest  # two processes share the cores: a thread that waits should not spin

# onnxruntime-gpu where there is an NVIDIA driver, onnxruntime elsewhere: never both
EXTRA = $(if $(GPU),gpu,cpu)
# without compiling all of torch: Python compiles what is imported, once. Images of containers often forbid it to keep that, and torch
# would be compiled in every process anew, for some ten seconds
QUIETLY = --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "sattrt needs Python 3.11 or 3.12: make $(MAKECMDGOALS) PYTHON=path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade pip
	.venv/bin/pip install $(QUIETLY) --editable '.[train,$(EXTRA),openvino,tensorrt-rtx]'
	$(if $(GPU),.venv/bin/pip install $(QUIETLY) --editable '.[tensorrt]' 2>/dev/null || echo "without TensorRT; to see why: .venv/bin/pip install tensorrt")
	touch $@

.venv/installed-for-tests: .venv/installed
	.venv/bin/pip install $(QUIETLY) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv $(DEMO) build *.egg-info
