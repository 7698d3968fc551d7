# make demo: the whole of RLHF on this machine.  make test: the tests.  Both set up what they need, once.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
FUZZ_SECONDS ?= 60
# Test processes side by side: as many as cores and memory allow (tests/conftest.py), and the longest files first.
WORKERS ?= auto
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 20
# A folder of scripts that bring an engine, tools and a base image to a machine that lacks them (scripts/with-engine).
PLATFORM ?= $(wildcard ../shared/platform)

.PHONY: help setup demo test test-unit test-all test-deploy test-k8s check-deploy k8s-jobs lint format protos dashboards fuzz bench bench-train bench-frontier bench-reward bench-async bench-fleet bench-weight-push images locks clean
help: ## Show this list.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# Installed anew whenever the dependencies change; see scripts/install for CPU and GPU builds.
$(VENV)/.installed: pyproject.toml scripts/install
	PYTHON=$(PYTHON) scripts/install $(VENV)
	@touch $@
setup: $(VENV)/.installed ## Create the virtual environment and install everything into it.

demo: setup ## Train a small real model from simulated preferences: all services, real vLLM (about 15 minutes on 2 cores).
	$(BIN)/rlhf demo $(ARGS)

test: setup ## Run all tests but those that take minutes (about 8 minutes on 2 cores).
	$(BIN)/pytest $(PARALLEL) $(ARGS)

test-unit: setup ## Run the unit tests alone (about 90 seconds on 2 cores).
	$(BIN)/pytest tests/unit $(PARALLEL) $(ARGS)

test-all: lint test ## Run the linters and all tests, those that take minutes included.
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -m "exhaustive or hypothesis" --durations 20 $(ARGS)

fuzz: setup ## Look for inputs that break the reward service's decoding (FUZZ_SECONDS=60 for each of two targets).
	@mkdir -p build/fuzz/grpc build/fuzz/json
	$(BIN)/python tests/fuzz/fuzz_grpc.py -max_total_time=$(FUZZ_SECONDS) -timeout=10 -artifact_prefix=build/fuzz/ build/fuzz/grpc
	$(BIN)/python tests/fuzz/fuzz_json.py -max_total_time=$(FUZZ_SECONDS) -timeout=10 -artifact_prefix=build/fuzz/ build/fuzz/json

test-deploy: export PLATFORM := $(PLATFORM)
test-deploy: setup ## Build the images, bring the compose stack up, train in it, watch it, break it (needs a container engine).
	scripts/with-engine $(MAKE) images
	scripts/with-engine $(BIN)/pytest -m deploy tests/deploy $(ARGS)

# checkov's own dependencies would hold ours back, so it has an environment of its own.
build/checkov/bin/checkov:
	$(PYTHON) -m venv build/checkov
	build/checkov/bin/pip install --quiet "checkov==3.3.30"
check-deploy: export PLATFORM := $(PLATFORM)
check-deploy: setup build/checkov/bin/checkov ## Check all of deploy/ without running it: manifests, rules, dashboards, Dockerfile.
	$(BIN)/pytest -q tests/unit/deploy
	scripts/with-tools $(BIN)/pytest -m static tests/deploy $(ARGS)

k8s-jobs: setup ## Write the runs in deploy/k8s/jobs anew, as rlhf submit makes them.
	PATH=$(abspath $(BIN)):$$PATH scripts/k8s-jobs

test-k8s: export PLATFORM := $(PLATFORM)
test-k8s: setup ## Build the images, deploy to a real Kubernetes (of KUBECONFIG, else a node started here), train in it, break it.
	@[ -n "$$KUBECONFIG$$PLATFORM" ] || { echo "test-k8s: set KUBECONFIG to that of a cluster for tests" >&2; exit 2; }
	scripts/with-engine $(MAKE) images
	[ -n "$$KUBECONFIG" ] || "$$PLATFORM/mkkube.sh"
	scripts/with-engine $(BIN)/pytest -m kubernetes tests/deploy $(ARGS)

lint: setup ## Check style, types and contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy rlhf services rlhf_cli
	$(BIN)/buf lint

format: setup ## Format the code and the contracts.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

protos: setup ## Generate the stubs of the contracts.
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. \
	  $$(find protos -name '*.proto')

dashboards: setup ## Build Grafana's dashboards and the Kubernetes rules from deploy/monitoring.
	$(BIN)/python deploy/monitoring/build_dashboards.py
	$(BIN)/python deploy/monitoring/build_rules.py $(if $(RUNBOOK_BASE),--runbook-base $(RUNBOOK_BASE))

bench: setup ## Measure one PPO step, and the same work in TRL (see docs/benchmarks.md).
	$(BIN)/python bench/ppo_step.py $(ARGS)

bench-train: setup ## Measure training steps, and the same in TRL (see docs/benchmarks.md).
	$(BIN)/python bench/train.py $(ARGS)

bench-async: setup ## Measure what sampling ahead of training saves (about 3 minutes; see docs/benchmarks.md).
	$(BIN)/python bench/sampling_ahead.py $(ARGS)

bench-reward: setup ## Measure the reward service under load (about 10 minutes on 2 cores; see docs/benchmarks.md).
	$(BIN)/python bench/reward_service.py $(ARGS)

bench-fleet: setup ## Measure weight pushes to 1, 2, 4 and 8 replicas (about 3 minutes on 2 cores; see docs/benchmarks.md).
	$(BIN)/python bench/fleet.py $(ARGS)

bench-weight-push: setup ## Measure weight pushes to real vLLM, and what PPO steps change (see docs/benchmarks.md).
	$(BIN)/python bench/weight_push.py $(ARGS)

bench-frontier: setup ## Draw reward against KL for PPO and DPO (about 30 minutes on 2 cores; goes on where it stopped).
	$(BIN)/python bench/frontier.py $(ARGS)

images: ## Build the container images (VARIANT=cpu or gpu; see deploy/docker/README.md).
	scripts/images $(ARGS)

locks: setup ## Pin and hash the images' packages anew (UPGRADE=1 takes the newest).
	UV=$(BIN)/uv PIP=$(BIN)/pip scripts/lock $(ARGS)

clean: ## Remove what was built; runs/ and the virtual environment stay.
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
