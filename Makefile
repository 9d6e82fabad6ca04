# Each target sets itself up: a virtual environment in .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Tests with a target of their own.
APART := not jax and not browser and not faults and not ray and not timing and not docs and not notebooks
# Two processes; the tests of a file stay together, since they share what they trained.
PARALLEL := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo demo-train test test-all test-browser test-docs test-faults test-jax test-notebooks test-ray test-timing \
	check format docs notebooks tables benchmark-build benchmark-export \
	benchmark-input benchmark-regressions benchmark-runtime benchmark-serving benchmark-train clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	@touch $@

demo: $(INSTALLED) ## export a trained network, verify it, and classify real images with it
	$(BIN)/keras-resnets demo

demo-train: $(INSTALLED) ## the same with a network that is trained first, half a minute
	$(BIN)/keras-resnets demo --train

test: $(INSTALLED) ## the test suite
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and $(APART)"

test-all: $(INSTALLED) ## the test suite with the whole registry
	$(BIN)/python -m pytest $(PARALLEL) -m "$(APART)"

test-jax: $(INSTALLED) ## every model on Keras's JAX backend against TensorFlow's
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[jax]"
	$(BIN)/python -m pytest -m jax

test-ray: $(INSTALLED) ## the server in Ray Serve's replicas
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[serve-ray]"
	$(BIN)/python -m pytest -m ray

test-faults: $(INSTALLED) ## the server under overload, stops and reloads, about 3 minutes
	$(BIN)/python -m pytest -m faults -s

test-notebooks: $(INSTALLED) ## every notebook from top to bottom, and how long each takes: a few minutes each
	$(BIN)/python -m pytest tests/test_notebooks.py --durations=0

test-timing: $(INSTALLED) ## benchmarks beside raw loops, on a quiet machine, about 2 minutes
	$(BIN)/python -m pytest -m timing -s

test-browser: $(INSTALLED) ## the server's page and reports in headless Chromium (Debian: apt install chromium), with screenshots
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	$(BIN)/python -m pytest -m browser

check: $(INSTALLED) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy keras_resnets export serving
	$(BIN)/lint-imports

format: $(INSTALLED) ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(INSTALLED) ## run all notebooks (NOTEBOOKS=… these) and store their outputs in them
	$(BIN)/python notebooks/execute.py $(NOTEBOOKS)

docs: $(INSTALLED) ## build the documentation's site into build/docs; a warning is an error
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/docs

test-docs: $(INSTALLED) ## the site is built without a warning, and its links lead somewhere
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python -m pytest -m docs

tables: $(INSTALLED) ## write the generated tables of README and docs anew
	$(BIN)/python tests/tables.py

benchmark-build: $(INSTALLED) ## time the construction of the thousand-layer networks
	$(BIN)/python benchmarks/build.py --model resnet1202
	$(BIN)/python benchmarks/build.py --model resnet1001v2

benchmark-export: $(INSTALLED) ## time ONNX exports against Keras's exporter, and PyTorch's (TORCH=a Python with torchvision)
	$(BIN)/python benchmarks/export_onnx.py --model resnet50 $(if $(TORCH),--torch-python $(TORCH))
	$(BIN)/python benchmarks/export_onnx.py --model resnet152 $(if $(TORCH),--torch-python $(TORCH))
	$(BIN)/python benchmarks/export_onnx.py --model vgg16 $(if $(TORCH),--torch-python $(TORCH))
	$(BIN)/python benchmarks/export_onnx.py --model resnet1001v2
	$(BIN)/python benchmarks/export_onnx.py --what bundle

benchmark-input: $(INSTALLED) ## time the input pipeline against a torch DataLoader (TORCH=a Python that has torch)
	$(BIN)/python benchmarks/input_pipeline.py --torch-python $(TORCH)

benchmark-runtime: $(INSTALLED) ## time our ResNet-50 in ONNX Runtime against torchvision's (TORCH=a Python with torchvision)
	$(BIN)/python benchmarks/runtime_onnx.py --torch-python $(TORCH)

benchmark-regressions: $(INSTALLED) ## has inference become slower here since this was last run? About 5 minutes; status 2 if so
	$(BIN)/python benchmarks/regressions.py

benchmark-serving: $(INSTALLED) ## time the server with wrk, and others (PEERS=a Python that has them)
	$(BIN)/python benchmarks/serve.py $(if $(PEERS),--peer-python $(PEERS))
	$(BIN)/python benchmarks/serve_overhead.py

benchmark-train: $(INSTALLED) ## time training steps against Keras's fit, and PyTorch (TORCH=a Python that has torch)
	$(BIN)/python benchmarks/train_speed.py --model resnet20 $(if $(TORCH),--torch-python $(TORCH))
	$(BIN)/python benchmarks/train_speed.py --model resnet50 $(if $(TORCH),--torch-python $(TORCH))

clean: ## remove the virtual environment and what was built
	rm -rf .venv build dist demo_output *.egg-info
