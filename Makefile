# The front door. `make help` lists the targets; CONFIG, DATA, SET and FRESH apply to every stage.

CONFIG ?= configs/demo.yaml
DATA   ?=
SET    ?=
FRESH  ?=
override FRESH := $(filter-out 0 n N no No NO none None false False FALSE off Off OFF,$(FRESH))
LABELS ?= red cube, cyan sphere
COUNT  ?= 8
SEED   ?= 0
OUT    ?= sample.png
KILLS  ?= 25
# Which reports `make results` reads, such as FROM="checkpoints/iclevr/eval checkpoints/reproduce".
FROM   ?=
PYTHON ?= python3
# Which model `make sample`, `progress` and `samplers` take, if not the configuration's first.
MODEL  ?=
# Further flags for an experiment, such as FLAGS="--steps 200".
FLAGS  ?=
# `make reproduce`: how many rows run at once, one a core, and after how many hours it stops.
JOBS   ?=
HOURS  ?=

PY    := .venv/bin/python
READY := .venv/.ready
EXPORT_READY := .venv/.ready-export
PLAY  := .venv/.play
INSTALL = if command -v uv >/dev/null 2>&1; \
	  then uv pip install --quiet --python $(PY) --require-hashes -r $(1); \
	  else $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(1); fi
# FRESH=1 starts the targets on the command line again, but not their prerequisites.
ARGS   = --config "$(CONFIG)" $(if $(and $(FRESH),$(filter $@,$(MAKECMDGOALS))),--fresh) $(if $(filter $@,$(EXPERIMENTS)),$(FLAGS))
SETS   = $(if $(DATA),"data.folder=$(DATA)") $(SET)
OF_MODEL = $(if $(MODEL),--model $(MODEL))
STAGE  = @$(PY) -m stages.$(1) $(ARGS) $(2) -- $(SETS)
# SAYS prints a value of the configuration; AGAIN calls Make again for the targets that it names.
SAYS   = $$($(PY) -m stages.engine.config --config "$(CONFIG)" --print $(1) $(SETS))
AGAIN  = --no-print-directory FRESH=
# Of these targets, those on the command line run first, with FRESH=1 if it is given.
NAMED  = $(filter scenes evaluator reader vae ldm gan ddpm onestep,$(MAKECMDGOALS))
EXPERIMENTS := judges places placed gradnorm progress samplers ablations compare held-out reproduce pace

# Two trainings at once on one machine are slower than one after the other: never run them in parallel, even with -j.
.NOTPARALLEL:
.PHONY: help setup setup-export export demo scenes evaluator reader vae ldm for-gan gan ddpm onestep models for-diffusion for-drawer eval sample play release browser results bench growth test lint faults lock $(EXPERIMENTS)
.DEFAULT_GOAL := help

help: ## print this list
	@echo "make TARGET [CONFIG=configs/NAME.yaml] [DATA=folder] [SET=\"section.key=value ...\"] [FRESH=1] [FLAGS=\"--flag ...\"]"
	@echo
	@awk -F ':[^#]*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "An experiment's flags: $(PY) -m stages.experiments.NAME --help (NAME with _ for -). Without CONFIG: configs/demo.yaml; sample, play and export then use the shipped weights."
	@echo "A finished stage returns at once, an interrupted one resumes. configs/: $$(cd configs && ls *.yaml | tr '\n' ' ')"

##@ Pipeline

setup: $(READY) ## install the versions in requirements.lock into .venv

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) must be Python 3.11 or newer; install it or set PYTHON=python3.12" >&2; exit 2; }
	@[ ! -L .venv ] || rm .venv  # a link to another environment: the commands below would empty it
	@rm -f $(READY)
	@$(PYTHON) -m venv --clear .venv || \
	  { echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 2; }
	@echo "installing requirements.lock into .venv (a few minutes, about 6 GB) ..."
	@$(call INSTALL,requirements.lock)
	@touch $(READY)

setup-export: $(EXPORT_READY) ## also install what `make export` needs, by requirements-export.lock

$(EXPORT_READY): requirements-export.lock $(READY)
	@rm -f $@
	@$(call INSTALL,requirements-export.lock)
	@touch $@

demo: eval ## run everything, from a bare machine to a report
	@$(if $(FRESH),echo "FRESH=1 starts only named targets again: make vae ldm gan FRESH=1" >&2)

scenes: setup ## render the scenes of a configuration without data.folder
	$(call STAGE,render)

evaluator: scenes ## train the evaluator (the judge), or take the lab's checkpoint
	$(call STAGE,evaluator)

reader: scenes ## train the network that finds objects and their places, if the data has places
	$(call STAGE,reader)

vae: evaluator ## train stage 1, the VQ-VAE
	$(call STAGE,vae)

ldm: vae ## train stage 2, latent diffusion
	$(call STAGE,ldm)

# The VAE, if gan.space is latents.
for-gan: evaluator $(filter vae,$(NAMED))
	@space="$(call SAYS,gan.space)" && if [ "$$space" = latents ]; then $(MAKE) $(AGAIN) vae; fi

gan: for-gan ## train the conditional WGAN-GP (and first the VAE, if gan.space is latents)
	$(call STAGE,gan)

# A stage that a configuration may lack, or that may not suit it, is checked before what it needs is trained.
checked-ddpm checked-onestep: checked-%: setup
	@$(PY) -m stages.$* --config "$(CONFIG)" --check $(if $(and $(FRESH),$(filter $*,$(MAKECMDGOALS))),--fresh) -- $(SETS)

ddpm: checked-ddpm evaluator ## train diffusion on pictures (needs a configuration with a ddpm section)
	$(call STAGE,ddpm)

onestep: checked-onestep ldm ## distil the LDM into a one-step generator (needs a configuration with a onestep section)
	$(call STAGE,onestep)

# An experiment's command line and configuration are checked before anything is trained for it.
checked-%: setup
	@$(PY) -m stages.experiments.$(subst -,_,$*) --config "$(CONFIG)" --check $(FLAGS) $(OF_ONE) -- $(SETS)
OF_ONE = $(if $(filter $*,progress samplers),$(OF_MODEL)) $(if $(filter $*,reproduce),$(OF_REPRODUCE))
OF_REPRODUCE = $(if $(JOBS),--jobs $(JOBS)) $(if $(HOURS),--hours $(HOURS))

# Makes what `models` names, except targets on the command line.
models: setup $(NAMED)
	@rest=; models="$(call SAYS,models)" && for model in $$models; do \
	  case " $(MAKECMDGOALS) " in *" $$model "*) ;; *) rest="$$rest $$model";; esac; done && \
	  { [ -z "$$rest" ] || $(MAKE) $(AGAIN) $$(for m in $$rest; do case $$m in (ddpm|onestep) echo checked-$$m;; esac; done) $$rest; }

for-diffusion for-drawer: for-%: setup $(NAMED)
	@model="$(or $(MODEL),$(call SAYS,$*))" && $(MAKE) $(AGAIN) $$model

eval: models reader ## train what is missing, evaluate, write checkpoints/NAME/eval/report.html
	$(call STAGE,evaluate)

##@ Use

# Without CONFIG (or DATA, or a name or root in SET) it is the weights that come with the project: nothing is trained.
GIVEN   = $(filter-out file,$(origin CONFIG)) $(DATA) $(filter name=% root=%,$(SET))
SHIPPED = $(if $(strip $(GIVEN)),,$(wildcard checkpoints/scenes/config.yaml))
SAMPLE  = $(PY) -m stages.use.sample --config "$(or $(SHIPPED),$(CONFIG))" --labels "$(LABELS)" --count $(COUNT) \
	  --seed $(SEED) $(OF_MODEL) --out "$(OUT)" $(FLAGS)

checked-sample: setup
	@$(SAMPLE) --check -- $(SETS)

sample: $(if $(SHIPPED),setup,checked-sample for-drawer) ## draw LABELS="red cube at 0.3 0.6, cyan sphere" [COUNT=8] [SEED=0] [MODEL=ldm|gan|ddpm|onestep] [OUT=sample.png|x.gif|folder/]
	$(if $(SHIPPED),@echo "weights: checkpoints/scenes (CONFIG=configs/demo.yaml draws with those of make demo)" >&2)
	@$(SAMPLE) -- $(SETS)

$(PLAY): requirements-play.lock $(READY)
	@$(call INSTALL,requirements-play.lock)
	@touch $(PLAY)

# HOST and PORT count on the command line alone: some shells export them.
SAID = $(if $(filter command,$(origin $(1))),--$(2) "$($(1))")

play: $(PLAY) ## serve a page to place objects and draw, for this machine only [PORT=8000] [HOST=0.0.0.0 for all]
	@$(PY) -m stages.play --config "$(or $(SHIPPED),$(CONFIG))" $(call SAID,HOST,host) $(call SAID,PORT,port) -- $(SETS)

release: setup ## write the weights in 16 bits with a model card, FLAGS="--to folder [--report report.json ...]"
	@$(PY) -m stages.use.release --config "$(CONFIG)" $(FLAGS) -- $(SETS)

export: setup-export ## write trained weights as safetensors and ONNX, for other programs: [OUT=exports/NAME]
	@$(PY) -m stages.use.export --config "$(or $(SHIPPED),$(CONFIG))" $(if $(filter file,$(origin OUT)),,--out "$(OUT)") -- $(SETS)

##@ Experiments

progress: checked-progress for-diffusion ## [MODEL=ldm|ddpm] show the denoising of five samples, step by step
	$(call STAGE,experiments.progress,$(OF_MODEL))

samplers: checked-samplers for-diffusion ## [MODEL=ldm|ddpm] compare DDPM with DDIM at 100 to 5 sampling steps: accuracy and time
	$(call STAGE,experiments.samplers,$(OF_MODEL))

placed: checked-placed eval ## draw one object at eight places, FLAGS="--labels '...'", and measure how far off it is
	$(call STAGE,experiments.placed)

places: checked-places scenes ## show 32 training pictures with their objects' places marked
	$(call STAGE,experiments.places)

gradnorm: checked-gradnorm for-gan ## compare gradient norms by critic layer, with weight clipping and with gradient penalty
	$(call STAGE,experiments.gradnorm)

ablations: checked-ablations vae ## change one choice at a time (conditions, schedule, prediction, guidance), with small budgets
	$(call STAGE,experiments.ablations)

compare: checked-compare eval ## compare the models: time, memory, accuracy, diversity
	$(call STAGE,experiments.compare)

held-out: checked-held-out vae ## withhold some label sets from training, then ask for them, and for four and five objects
	$(call STAGE,experiments.held_out)

judges: checked-judges evaluator ## train two further judges, evaluators of other seeds by which nothing is chosen; `make eval` then uses them too
	$(call STAGE,experiments.judges)

# A plan trains nothing: it names what is missing.
reproduce: checked-reproduce $(if $(filter --plan,$(FLAGS)),,vae) ## run every system of the reports and compare all on one page [JOBS=2] [HOURS=3] [FLAGS="--plan"] (weeks on a CPU)
	$(call STAGE,experiments.reproduce,$(OF_REPRODUCE))

results: setup ## write the documentation's tables again, with the reports in FROM="checkpoints/NAME/eval checkpoints/reproduce"
	@$(PY) -m stages.experiments.results $(FROM)

##@ Measuring

pace: checked-pace evaluator ## measure how long the LDM takes to pass an accuracy of .80, with this recipe and with a plain one
	$(call STAGE,experiments.pace)

bench: setup ## time training steps, sampling and reading against plain code, other packages and the machine's rates
	@$(PY) -m stages.benchmark.bench --config "$(CONFIG)" $(if $(FRESH),--fresh) $(FLAGS) -- $(SETS)

growth: setup ## measure a step's time and memory by batch, networks, pictures (12 KiB of disk each, twice) and processes
	@$(PY) -m stages.benchmark.growth --config "$(CONFIG)" $(if $(FRESH),--fresh) $(FLAGS) -- $(SETS)

##@ Development

test: setup ## run the tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal

lint: setup ## ruff's rules and format, and mypy's types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

faults: setup ## run the long tests: kills at random moments (KILLS=25 per stage), damaged files, full disks, processes
	@KILLS=$(KILLS) $(PY) -m pytest -q -m faults -rP --durations=0

browser: $(PLAY) ## also install what drives Chromium in the tests of `make play`
	@$(call INSTALL,requirements-browser.lock)

lock: ## write requirements.lock and those of the extras again from pyproject.toml (needs uv)
	$(LOCK) pyproject.toml --extra dev -o requirements.lock
	for extra in export play browser quality; do \
	  $(EXTRA) $$extra | $(LOCK) --constraint requirements.lock - -o requirements-$$extra.lock || exit; done
LOCK  = uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --quiet
EXTRA = $(PYTHON) -c 'import sys, tomllib; from pathlib import Path; \
  print(*tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"][sys.argv[1]], sep="\n")'
