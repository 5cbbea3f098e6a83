# One command per intent, the same here and in CI.
.PHONY: help env run test lint format bench bench-optimize crds sbom debian cluster-build cluster-up cluster-down e2e

UV := hack/uv
BIN := .venv/bin
EXAMPLE := examples/digits
DEVCLUSTER := PYTHONPATH=hack/cluster $(BIN)/python -m devcluster
export UV_PYTHON_DOWNLOADS := never

help: ## what there is
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

env: ## the environment in .venv, as locked
	@$(UV) sync --quiet --frozen --all-extras

run: env $(EXAMPLE)/build/teacher.pt2 ## train the example, optimise it, serve it, ask it (RUN_SECONDS=n ends the server)
	$(BIN)/lathe run $(EXAMPLE)/model.yaml --out lathe-out/digits
	$(BIN)/python $(EXAMPLE)/ask.py lathe-out/digits

$(EXAMPLE)/build/teacher.pt2: $(EXAMPLE)/train.py
	$(BIN)/python $(EXAMPLE)/train.py

test: env cluster-build ## every test but the longest, a real Kubernetes and KServe included
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not whole"

e2e: env cluster-build $(EXAMPLE)/build/teacher.pt2 ## the example on a node with real pods, with every stage and both servers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cluster_e2e

debian: # programs that the node of a test cluster is made of
	@for program in containerd runc iptables ip; do command -v $$program >/dev/null || missing=1; done; \
	test -d /usr/lib/cni || missing=1; \
	test -z "$$missing" || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	  containerd runc containernetworking-plugins iproute2 iptables procps >/dev/null; }

cluster-build: env debian ## the programs of the test cluster, from pinned Go modules, once per machine
	@$(DEVCLUSTER) build >/dev/null

cluster-up: env ## a Kubernetes with KServe to try things out on; prints its kubeconfig
	@$(DEVCLUSTER) up

cluster-down: env ## stop what cluster-up has started
	@$(DEVCLUSTER) down

crds: env ## the CustomResourceDefinitions, from the API's models
	$(BIN)/python -m lathe_api.crd charts/lathe/files/crds

sbom: env ## the bill of materials (CycloneDX) of the environment, from the lock file, to dist/sbom.json
	@mkdir -p dist
	$(BIN)/python hack/sbom.py all operator s3 > dist/sbom.json

lint: env ## style, types and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: env ## mend what can be mended mechanically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-optimize ## every measurement

bench-optimize: env ## int8 against fp32 on ONNX Runtime, interleaved
	$(BIN)/python bench/optimize.py
