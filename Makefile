# One list of commands for people and for CI. Prerequisites: Python 3.11 and make.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-fast coverage fuzz lint options format clean bench-density bench-serve bench-train bench-gpu bench-images bench-restore soak chaos ablation test-web test-observability test-docs

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP) ## make the virtual environment with everything in it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[worker,local,dev]'
	touch $@

demo: $(STAMP) ## train, sample and judge a model of handwritten digits on this machine; writes demo/
	$(BIN)/recovery demo --out demo

# Much of the suite waits for processes: two tests at a time keep two cores busy. A file's tests stay together, in order.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: $(STAMP) ## every test
	$(PYTEST)

test-fast: $(STAMP) ## the tests that need no server and no minutes: 90 s on two cores
	$(PYTEST) -m "not stack and not slow"

coverage: $(STAMP) ## every test, and the share of the branches of model/, worker/ and service/ that they take
	$(PYTEST) --cov --cov-report=term:skip-covered

test-docs: $(STAMP) ## run every command and code block of README.md and docs/ against a real stack
	$(BIN)/python -m pytest tests/docs -m docs

test-web: $(STAMP) ## the web page in Chromium against the real stack; writes docs/images/web-*.png
	@command -v chromium >/dev/null || apt-get install --yes --quiet --no-install-recommends chromium fonts-inter || \
		{ echo "make test-web needs Debian's chromium and could not install it: as root, run \`apt-get update && apt-get install chromium fonts-inter\`, and try again"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[worker,local,dev,web]'
	$(BIN)/python -m pytest tests/web -m web

test-observability: $(STAMP) ## metrics, alerts and dashboards of a real run, by a real Prometheus; draws deploy/images/
	@command -v promtool > /dev/null || .ci/install-prometheus
	$(BIN)/python -m pytest tests/observability -m observability -s

fuzz: $(STAMP) ## generated requests against the real service, more of them than in `make test`
	RECOVERY_FUZZ_EXAMPLES=60 $(BIN)/python -m pytest tests/service/test_fuzz.py

bench-density: $(STAMP) ## train the planar densities and compare log Z and log p with the truth; writes bench-results/
	$(BIN)/python -m tests.bench.density

bench-serve: $(STAMP) ## throughput, latency and overhead of POST /sample, beside LitServe; writes bench-results/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[worker,local,dev,bench]'
	$(BIN)/python -m tests.bench.serve

SECONDS ?= 600
soak: $(STAMP) ## mixed load with clients that leave, for SECONDS: memory, leaks, unanswered requests
	$(BIN)/python -m tests.bench.soak $(SECONDS)

chaos: $(STAMP) ## kill everything around 12 trainings, again and again, and check that none is harmed; minutes, and more on a busy machine
	$(BIN)/python -m tests.chaos.run

bench-train: $(STAMP) ## cost of a training step and of a sample beside a plain implementation; writes bench-results/
	$(BIN)/python -m tests.bench.train

bench-restore: $(STAMP) ## restored items beside known posteriors, and digits beside other ways; writes bench-results/
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.restore

bench-images: $(STAMP) ## models of pictures: what samples cost, labels, training time, load; 30 minutes at most; writes bench-results/
	$(BIN)/python -m tests.bench.images

bench-gpu: $(STAMP) ## CIFAR-10-shaped training and sampling on a CUDA device; says so when there is none
	$(BIN)/python -m tests.bench.gpu

ablation: $(STAMP) ## what each option of stability does to a small DRL on the digits; 20 minutes at most
	OMP_WAIT_POLICY=passive $(BIN)/python -m tests.bench.ablation

lint: $(STAMP) ## formatting, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

options: $(STAMP) ## write service/client/options.py, the client's keyword arguments, of the bodies of requests
	$(BIN)/python -m service.client.generate

format: $(STAMP) ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the other targets made
	rm -rf $(VENV) demo bench-results .pytest_cache .mypy_cache .ruff_cache
