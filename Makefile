# Two commands on a fresh machine: `make demo` distils the embedded teacher, `make test` runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/digits.yaml
OVERRIDES ?=
INSTALLED := $(VENV)/.installed
# torchao lies beside the environment: diffusers looks for it there, and warns in every process that has it.
TORCHAO := $(VENV)/8bit
# A second version of triton, seen only by a process that has it on its PYTHONPATH.
SECOND_TRITON := $(VENV)/triton-3.6
# OpenMP threads that wait for one another spin; on cores shared with other work that costs a factor of ten. This many
# turns (about 0.1 ms) keep the speed of an idle machine.
export GOMP_SPINCOUNT ?= 100000

.PHONY: install demo test fast processors search faults gate gpu-check lint teacher studies clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt container/install.sh
	PYTHON=$(PYTHON) container/install.sh $(VENV) --editable '.[dev]'
	touch $@

$(TORCHAO): $(INSTALLED)
	container/beside.sh $(VENV) $@ torchao
	touch $@

# Every step goes on where it was stopped; a finished run is only evaluated and reported again.
demo: $(INSTALLED)
	$(BIN)/python launchers/synthesize.py --config $(CONFIG) $(OVERRIDES)
	$(BIN)/python launchers/train.py --config $(CONFIG) $(OVERRIDES)
	$(BIN)/python launchers/sample.py --config $(CONFIG) $(OVERRIDES)
	$(BIN)/python launchers/evaluate.py --config $(CONFIG) $(OVERRIDES)
	$(BIN)/python launchers/export.py --config $(CONFIG) --overwrite $(OVERRIDES)
	$(BIN)/python launchers/report.py --config $(CONFIG) $(OVERRIDES)

# Everything, the whole demo held against its targets included: two files at a time.
test: $(INSTALLED) $(TORCHAO)
	tests/tools.sh
	$(BIN)/pytest -m "slow or not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=15

# The tests of seconds.
fast: $(INSTALLED)
	$(BIN)/pytest

# The tests with numerical bounds, as other processors would add: about an hour, no part of `make test`.
processors: $(INSTALLED)
	tests/processors.sh

# Property tests on inputs drawn anew, many more than the same few hundred of `make test`: what fails is a flake or a bug.
search: $(INSTALLED) $(TORCHAO)
	$(BIN)/pytest -m "hypothesis and (slow or not slow)" --hypothesis-profile=search --numprocesses 2 --dist loadfile

# Runs of every engine killed at 20 random moments each, where `make test` has 3.
faults: $(INSTALLED)
	LADD_FAULT_POINTS=20 $(BIN)/pytest tests/test_faults.py -m "slow or not slow"

# Compile every kernel for GPUs that need not be here, under both triton versions; tables in docs/benchmarks/.
gate: $(INSTALLED) $(SECOND_TRITON)
	$(BIN)/python -m kernels.gate --out docs/benchmarks/gate-triton-3.9.md
	PYTHONPATH=$(SECOND_TRITON) $(BIN)/python -m kernels.gate --out docs/benchmarks/gate-triton-3.6.md

$(SECOND_TRITON): | $(INSTALLED)
	$(BIN)/pip install --no-deps --target $@ triton==3.6.0

# On a machine with a GPU, one call meant to end within ten minutes, see docs/gpu.md: the 8B step in several settings,
# which stops in time for the rest; correctness; times of kernels; the table that `auto` reads. BENCH_TIME is milliseconds
# of warm-up and of timing per provider and round.
STEP_CONFIG ?= configs/sd35_large_141gb.yaml
BENCH_TIME ?= --warmup 25 --rep 100
gpu-check: $(INSTALLED) $(TORCHAO)
	PYTHONPATH=$(TORCHAO) $(BIN)/python launchers/step.py --config $(STEP_CONFIG) --seconds 270 teacher.path=tests/gpu/sd35_large run_dir=runs/gpu_check
	$(BIN)/pytest --confcutdir=tests/gpu tests/gpu --numprocesses 6
	$(BIN)/python -m kernels.bench joint_attention $(BENCH_TIME) --seconds 60 --only batch=1 --only image=4096 --only text=154
	$(BIN)/python -m kernels.bench grouped_heads $(BENCH_TIME) --seconds 40 --only batch=1,4 --without "loop compiled"
	$(BIN)/python -m kernels.measured docs/benchmarks/joint_attention.json docs/benchmarks/grouped_heads.json

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# Rebuild the embedded teacher, its prompts and its judge from scikit-learn's digit scans (about half an hour).
teacher: $(INSTALLED)
	$(BIN)/python -m ladd_dist.digits.build

# Every study of docs/studies.md, one after the other: hours on two cores. Each goes on where it was stopped.
studies: $(INSTALLED)
	$(BIN)/python -m ladd_dist.measuring.scans_table runs/scans
	$(BIN)/python launchers/encode.py --config $(CONFIG) --pictures runs/scans/pictures.jsonl data.path=runs/scans/latents
	failed=0; for study in configs/studies/*.yaml; do \
		$(BIN)/python launchers/study.py --config $(CONFIG) --study $$study $(OVERRIDES) || failed=1; done; exit $$failed

# What was installed; runs stay.
clean:
	rm -rf $(VENV) *.egg-info
