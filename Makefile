# One command per intent, the same here and in CI.
.PHONY: help env run test lint format bench bench-optimize

UV := hack/uv
BIN := .venv/bin
EXAMPLE := examples/digits
export UV_PYTHON_DOWNLOADS := never

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

env: ## the environment in .venv, as locked
	@$(UV) sync --quiet --frozen --all-extras

run: env $(EXAMPLE)/build/teacher.pt2 ## train the example, optimise it, serve it, ask it (RUN_SECONDS=n ends the server)
	$(BIN)/lathe run $(EXAMPLE)/model.yaml --out lathe-out/digits
	$(BIN)/python $(EXAMPLE)/ask.py lathe-out/digits

$(EXAMPLE)/build/teacher.pt2: $(EXAMPLE)/train.py
	$(BIN)/python $(EXAMPLE)/train.py

test: env ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

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
