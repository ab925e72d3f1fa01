# Every target works on a fresh Debian 12 with Python 3.11, Go and root. NAME picks the local cluster, CLUSTER=current the kubeconfig at hand.
NAME ?= demo
CLUSTER ?= local
PYTHON ?= python3
VENV := .venv/bin
# Test files run side by side in this many processes, each with one thread of torch's: one mostly waits while the others
# compute, so one more than there are cores. 0 runs them one after the other.
WORKERS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(VENV)/python -m pytest --numprocesses $(WORKERS)
# Byte code is kept, as importing torch without it takes 15 s, but not beside the sources.
export PYTHONDONTWRITEBYTECODE =
export PYTHONPYCACHEPREFIX = $(CURDIR)/.local/pycache

.DEFAULT_GOAL := help
.PHONY: help demo demo-down test check test-gpu soak soak-pod soak-rollouts scale strangers lint format env evaluate numerals mutants lock charts images bench clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## a real Kubernetes with the fleet on it: ten ways to write a number from one base model
	@$(PYTHON) tools/demo up --name $(NAME) --cluster $(CLUSTER)

demo-down: ## take the demo away; only the cache stays
	@$(PYTHON) tools/demo down --name $(NAME) --cluster $(CLUSTER)

env: ## the Python environment in .venv
	@$(PYTHON) tools/bootstrap.py

test: env ## every test, in a cluster of its own, three files at a time (WORKERS=0 for one)
	@$(PYTEST)

check: env lint ## the fast part: lint, and the tests without a cluster
	@$(PYTEST) -m "not cluster and not slow"

test-gpu: env ## on a machine with a GPU: the kernels on it, and the exactness suite in float32 and bfloat16 (ONLY="llama or mixtral" for some families)
	@LORAFLEET_TEST_DEVICE=cuda $(PYTEST) tests/lorafleet_inference/kernels tests/lorafleet_inference/engine/test_exactness.py tests/lorafleet_inference/engine/test_exactness_bfloat16.py $(if $(ONLY),-k "$(ONLY) or kernels")

soak: env ## families on two ranks, what looks for rare orders of events, for an hour, then hostile traffic for an hour (SECONDS=600 for less)
	@LORAFLEET_TEST_SOAK_SECONDS=$(or $(SECONDS),3600) $(VENV)/python -m pytest tests/soak -m soak
	@$(MAKE) --no-print-directory soak-pod

strangers: env ## thousands of requests made of the OpenAPI documents, of a pod and through a gateway (EXAMPLES=300 a route)
	@LORAFLEET_TEST_EXAMPLES=$(or $(EXAMPLES),300) $(VENV)/python -m pytest tests/lorafleet_inference/server/test_described.py tests/lorafleet_inference/pod/test_described.py tests/lorafleet_gateway/test_described.py

scale: env ## operator and gateway with 1,000 adapters on 50 pods over a real API server; a quarter of an hour on a quiet machine
	@LORAFLEET_TEST_SCALE=1 $(VENV)/python -m pytest tests/scale
	@PYTHONPATH=contract/src:common/src:tests:tools $(VENV)/python -m scale --sweep --output benchmarks/results/scale.json --plot docs/scale.svg $(OPTIONS)

soak-pod: env ## hostile traffic against a pod, beside a tenant whose answers are checked (SECONDS=3600 SEED=1 OUTPUT=.local/soak)
	@PYTHONPATH=tests:tools nice -n 5 $(VENV)/python -m soak.hostile --seconds $(or $(SECONDS),3600) --seed $(or $(SEED),1) --output $(or $(OUTPUT),.local/soak)

soak-rollouts: env ## 10,000 streamed requests through three rollouts while a pod, the operator and a gateway go (STREAMS=10000)
	@LORAFLEET_TEST_STREAMS=$(or $(STREAMS),10000) $(VENV)/python -m pytest tests/cluster/test_rollouts.py -s

lint: env ## ruff, mypy strict, import rules
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy contract/src common/src operator/src gateway/src inference/src
	@$(VENV)/lint-imports

format: env ## let ruff lay out the code
	@$(VENV)/ruff check --fix . ; $(VENV)/ruff format .

lock: ## remake the locks in requirements/ (UPGRADE=1 takes newer versions)
	@PATH="$$($(PYTHON) -c 'import sys; sys.path.insert(0, "tools"); import bootstrap, os; print(os.path.dirname(bootstrap.find_uv()))'):$$PATH" sh requirements/lock.sh $(if $(UPGRADE),--upgrade)

bench: env ## how fast a pod serves beside PEFT and transformers; half an hour on a quiet machine (OPTIONS="--vllm --adapters 0,8")
	@$(VENV)/python benchmarks/serving.py $(OPTIONS)

charts: env ## remake what of the charts is made from crds/ and values.yaml
	@$(VENV)/python tools/chart_files.py

images: ## the images of the Dockerfiles, with docker, podman or buildah; BASE=local where no registry is reached
	@$(PYTHON) tools/images.py $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(TAG),--tag $(TAG)) $(if $(BASE),--base $(BASE)) $(IMAGES)

numerals: env ## remake the demo model and its adapters in models/ (about 10 min on 2 cores)
	@PYTHONPATH=tools nice -n 5 $(VENV)/python -m numerals train

evaluate: env ## ask every model of the demo 500 numbers it never saw; URL=http://… asks a running API instead of starting one
	@PYTHONPATH=tools $(VENV)/python -m numerals evaluate $(if $(URL),--url $(URL))

mutants: env ## small faults in the pure cores, one at a time: which does no test notice (half an hour; MODULES="place diff" for some)
	@nice -n 19 $(VENV)/python tools/mutants.py $(MODULES)

clean: ## remove the environment and what tools left in the checkout; the cache outside it stays
	@rm -rf .venv .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
