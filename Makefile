# The front door. `make help` lists the targets; CONFIG, DATA, SET and FRESH apply to every stage.

CONFIG ?= configs/demo.yaml
DATA   ?=
SET    ?=
FRESH  ?=
LABELS ?= red cube, cyan sphere
COUNT  ?= 8
SEED   ?= 0
OUT    ?= sample.png
KILLS  ?= 25
PYTHON ?= python3
# Which model `make sample`, `progress` and `samplers` take, if not the configuration's first.
MODEL  ?=
# Further flags of an experiment, such as FLAGS="--steps 200".
FLAGS  ?=

PY    := .venv/bin/python
READY := .venv/.ready
# FRESH=1 starts anew what is named on the command line, not what that needs.
ARGS   = --config "$(CONFIG)" $(if $(and $(FRESH),$(filter $@,$(MAKECMDGOALS))),--fresh) $(if $(filter $@,$(EXPERIMENTS)),$(FLAGS))
SETS   = $(if $(DATA),"data.folder=$(DATA)") $(SET)
OF_MODEL = $(if $(MODEL),--model $(MODEL))
STAGE  = @$(PY) -m stages.$(1) $(ARGS) $(2) -- $(SETS)
# What the configuration says, and Make again for the targets that it names.
SAYS   = $$($(PY) -m stages.engine.config --config "$(CONFIG)" --print $(1) $(SETS))
AGAIN  = --no-print-directory FRESH=
# What of it stands on the command line comes first, with its FRESH=1.
NAMED  = $(filter scenes evaluator reader vae ldm gan ddpm,$(MAKECMDGOALS))
EXPERIMENTS := places placed gradnorm progress samplers ablations compare held-out reproduce pace

# Two trainings at once on one machine are slower than one after the other: never in parallel, also under -j.
.NOTPARALLEL:
.PHONY: help setup demo scenes evaluator reader vae ldm for-gan gan ddpm models for-diffusion for-drawer eval sample bench growth test lint faults lock $(EXPERIMENTS)
.DEFAULT_GOAL := help

help: ## this list
	@echo "make TARGET [CONFIG=configs/NAME.yaml] [DATA=folder] [SET=\"section.key=value ...\"] [FRESH=1] [FLAGS=\"--an-experiment's ...\"]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  \1	/' | expand -t 14
	@echo
	@echo "A finished stage returns at once, an interrupted one goes on. configs/: $$(cd configs && ls *.yaml | tr '\n' ' ')"

setup: $(READY) ## .venv with what requirements.lock pins

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) must be Python 3.11 or newer; install it or say PYTHON=python3.12" >&2; exit 2; }
	@rm -f $(READY)
	@$(PYTHON) -m venv --clear .venv || \
	  { echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 2; }
	@echo "installing requirements.lock into .venv (a few minutes, about 6 GB) ..."
	@if command -v uv >/dev/null 2>&1; \
	  then uv pip install --quiet --python $(PY) --require-hashes -r requirements.lock; \
	  else $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; fi
	@touch $(READY)

demo: eval ## everything, from a bare machine to a report
	@$(if $(FRESH),echo "FRESH=1 starts anew only what it names: make vae ldm gan FRESH=1" >&2)

scenes: setup ## draw the scenes of a configuration without data.folder
	$(call STAGE,render)

evaluator: scenes ## the judge: the lab's checkpoint, or one trained here
	$(call STAGE,evaluator)

reader: scenes ## reads from pictures what they show and where: judges placing, where the data knows places
	$(call STAGE,reader)

vae: evaluator ## stage 1: VQ-VAE
	$(call STAGE,vae)

ldm: vae ## stage 2: latent diffusion
	$(call STAGE,ldm)

# The VAE, where gan.space is latents.
for-gan: evaluator $(filter vae,$(NAMED))
	@space="$(call SAYS,gan.space)" && if [ "$$space" = latents ]; then $(MAKE) $(AGAIN) vae; fi

gan: for-gan ## conditional WGAN-GP (trains the VAE first where gan.space is latents)
	$(call STAGE,gan)

ddpm: evaluator ## diffusion on pictures (a configuration with a ddpm section)
	$(call STAGE,ddpm)

# What `models` names and is not on the command line.
models: setup $(NAMED)
	@rest=; models="$(call SAYS,models)" && for model in $$models; do \
	  case " $(MAKECMDGOALS) " in *" $$model "*) ;; *) rest="$$rest $$model";; esac; done && \
	  { [ -z "$$rest" ] || $(MAKE) $(AGAIN) $$rest; }

for-diffusion for-drawer: for-%: setup $(NAMED)
	@model="$(or $(MODEL),$(call SAYS,$*))" && $(MAKE) $(AGAIN) $$model

eval: models reader ## train what is missing, evaluate, write checkpoints/NAME/eval/report.html
	$(call STAGE,evaluate)

sample: for-drawer ## LABELS="red cube at 0.3 0.6, cyan sphere" [COUNT=8] [SEED=0] [MODEL=ldm|gan|ddpm] [OUT=sample.png]
	@$(PY) -m stages.sample --config "$(CONFIG)" --labels "$(LABELS)" --count $(COUNT) --seed $(SEED) \
	  $(OF_MODEL) --out "$(OUT)" $(SETS)

progress: for-diffusion ## [MODEL=ldm|ddpm] whole denoisings of five samples, step by step
	$(call STAGE,experiments.progress,$(OF_MODEL))

samplers: for-diffusion ## [MODEL=ldm|ddpm] DDPM against DDIM with 100 to 5 steps: accuracy and time
	$(call STAGE,experiments.samplers,$(OF_MODEL))

placed: eval ## one object at eight asked places, FLAGS="--labels '...'", and how far off the reader finds it
	$(call STAGE,experiments.placed)

places: scenes ## 32 training pictures with the places of their objects drawn in
	$(call STAGE,experiments.places)

gradnorm: for-gan ## gradient norms by critic layer: weight clipping against the gradient penalty
	$(call STAGE,experiments.gradnorm)

ablations: vae ## conditions, schedule, prediction, guidance: one choice at a time, small budgets
	$(call STAGE,experiments.ablations)

compare: eval ## the models side by side: time, memory, accuracy, diversity
	$(call STAGE,experiments.compare)

held-out: vae ## trained without a share of the label sets, and asked for them, for four and five objects
	$(call STAGE,experiments.held_out)

pace: evaluator ## how long until the LDM passes .80, by this recipe and by a plain one
	$(call STAGE,experiments.pace)

reproduce: vae ## every system of the reports, one page (weeks on a CPU: take FLAGS="--only ... --steps ...")
	$(call STAGE,experiments.reproduce)

bench: setup ## training steps, sampling and reading beside the plain way, other packages and the machine's rates
	@$(PY) -m stages.benchmark.bench --config "$(CONFIG)" $(if $(FRESH),--fresh) $(FLAGS) -- $(SETS)

growth: setup ## a step's time and memory against batch, networks, pictures (12 KiB of disk each, twice) and processes
	@$(PY) -m stages.benchmark.growth --config "$(CONFIG)" $(if $(FRESH),--fresh) $(FLAGS) -- $(SETS)

test: setup ## the tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2

lint: setup ## ruff's rules and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

faults: setup ## the long tests: kills at random moments (KILLS=25 a stage), damaged files, full disks, processes
	@KILLS=$(KILLS) $(PY) -m pytest -q -m faults -rP --durations=0

lock: ## requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --quiet -o requirements.lock
