# Every target uses ./run, which creates .venv if needed (PYTHON=... chooses the Python for it).

DATA ?=
MODEL ?= clicknet_m
OUT ?= runs/demo$(if $(DATA),-own)
JOBS ?= 2
ARGS ?=

ROWS ?=
SEEDS ?=
SHARE ?=
TABLES_DATA = $(if $(DATA),$(DATA),paper)

DEMO_ARGS = --dataset "$(or $(DATA),samples)" --metric iou --protocol fast --max-clicks 10 --keep-masks
DEMO_NAME = $(basename $(notdir $(MODEL)))

# Numerical libraries would start one thread per core in each test process.
test: export OMP_NUM_THREADS ?= 1
# Empty means unset: the tests start many processes, and each would compile hrseg again.
test: export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help demo own tables zoo zoo-cost vit test test-page lint types contracts docs pictures fresh check wheel clean

help: ## list all targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: ## count the clicks of MODEL and a graph cut on four photographs, or on DATA=folder (images/ + masks/); OUT=
	./run hrseg evaluate --model "$(MODEL)" $(DEMO_ARGS) --out "$(OUT)/$(DEMO_NAME)"
	./run hrseg evaluate --model grabcut $(DEMO_ARGS) --out "$(OUT)/grabcut"
	./run hrseg report "$(OUT)/$(DEMO_NAME)" "graph cut=$(OUT)/grabcut" --measure NoC@80 --measure NoC@90 --measure NoF@90 --measure mean@3 \
		--plot "$(OUT)/curves.png"
	@./run hrseg report "$(OUT)/$(DEMO_NAME)" --pictures "$(OUT)/pictures.png" --out "$(OUT)/table.md"
	@./run python docs/demo_result.py "$(OUT)" "$(DEMO_NAME)"

tables: OUT = runs/tables/$(basename $(notdir $(TABLES_DATA)))
tables: ## reproduce tables 3 and 4 of the adapter paper; DATA=paper or photos, ROWS="base t3_lora", SEEDS="0 1", OUT=
	OUT="$(OUT)" ROWS="$(ROWS)" SEEDS="$(SEEDS)" ./run recipes/paper/tables.sh "$(TABLES_DATA)"

own: OUT = runs/own-$(basename $(notdir $(DATA)))
own: ## adapt a model to DATA=folder (images/ + masks/) with each adapter, compare them on its other pictures; ROWS=, SHARE=, OUT=
	OUT="$(OUT)" ROWS="$(ROWS)" SHARE="$(SHARE)" ./run recipes/own/own.sh "$(DATA)"

zoo: OUT = runs/zoo
zoo: ## train and compare the decoders of recipes/zoo on DATA=folder with photographs; ROWS="unet linknet", OUT=
	OUT="$(OUT)" ROWS="$(ROWS)" ./run recipes/zoo/zoo.sh "$(DATA)"

vit: OUT = runs/vit
vit: ## distil a small Vision Transformer, adapt it with LoRA, TOAST and others, on DATA=folder with photographs; OUT=
	OUT="$(OUT)" ./run recipes/vit/vit.sh "$(DATA)"

zoo-cost: ## print parameters, GMAC, milliseconds and memory of all networks of the zoo; ROWS="unet linknet"
	./run python benchmarks/zoo_cost.py $(ROWS)

test: ## run the tests; ARGS="-k noc" adds pytest options, JOBS=4 sets the number of processes
	./run python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-page: export OMP_NUM_THREADS ?= 1
test-page: ## run the tests of the annotation page, which need Chromium; ARGS= adds pytest options
	./run python -m pytest -m page tests/annotate $(ARGS)

lint: ## check rules and formatting with ruff
	./run ruff check .
	./run ruff format --check .

types: ## check types with mypy, strict
	./run mypy

contracts: ## check the import rules between packages
	./run lint-imports

docs: ## update docs/commands/ from the help texts
	./run python docs/write_commands.py

pictures: ## redraw docs/pictures/ from runs of the shipped network; needs Chromium
	./run python docs/make_pictures.py

fresh: ## check that docs/commands/ is up to date
	./run python docs/write_commands.py --check

check: lint types contracts fresh test ## run all checks and the tests

wheel: ## build the package into dist/
	./run python -m build --wheel --outdir dist

clean: ## remove build and cache files; keeps .venv, runs/ and data/
	rm -rf build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache
	find hrseg_cli tests -name __pycache__ -prune -exec rm -rf {} +
