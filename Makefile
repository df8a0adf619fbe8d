# `make` lists what there is. Every target makes the virtual environment it needs; the second time that takes no time.

PYTHON ?= python3
VENV ?= .venv
RUNTIME ?= cpu

PRESET ?= mnist
DATA ?=
OUT ?= runs/$(PRESET)
DIST ?= dist
MODELS ?= models
BENCH ?= service
ARGS ?=

# `make version VERSION=0.2.0` changes it, everywhere; `make images` has it in tags and labels.
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' service/__init__.py)
ENGINE ?= docker
IMAGES ?= cpu gpu
REPOSITORY ?=

# The official builds of onnxruntime report to their maker unless told not to.
export ORT_DISABLE_TELEMETRY ?= 1
# The tests start many processes. Each would compile all modules if Python did not keep the result.
unexport PYTHONDONTWRITEBYTECODE

# Files that are valid alone. tests/slow/containers checks docker/compose.gpu.yml merged into them.
COMPOSE := docker-compose.yml docker/compose.gpu-metrics.yml

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# tests/conftest.py says how many workers, and the order of the files. The tests of a file share fixtures, so they stay
# on one worker.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
# With COVERAGE set, as in CI, `make test` records its coverage, and `make check` runs only the slow tests, which would
# take a fifth longer if theirs was recorded.
COVERAGE ?=
# The files that have slow tests: every worker imports all that it may run.
SLOW = tests/slow $(shell grep -rl 'mark\.slow' tests --include='test_*.py')
THOROUGH := -m pytest $(PARALLEL) --hypothesis-profile=ci

# One stamp for each set of extras, written once pip has finished: an interrupted install is taken up again.
SERVE := $(VENV)/.installed-$(RUNTIME)-serve
TRAIN := $(VENV)/.installed-$(RUNTIME)-train
DEVELOP := $(VENV)/.installed-$(RUNTIME)-develop

# The two runtimes unpack into the same folder, so the other one leaves before this one comes.
OTHER_cpu := onnxruntime-gpu
OTHER_gpu := onnxruntime
ifndef OTHER_$(RUNTIME)
$(error RUNTIME=$(RUNTIME): expected cpu or gpu)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
.PHONY: help run test check format lint types coverage containers budgets lock digests audit sbom licences train export \
  bench gpu openapi site version images release

help:  ## list the targets and variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) RUNTIME=$(RUNTIME) (cpu, gpu), ARGS for what a target runs, as in:'
	@echo 'make run PORT=9000 ARGS="--workers 2". `$(BIN)/ign serve --help` lists the options of the service.'

run: $(SERVE)  ## serve the models on http://127.0.0.1:8000
	$(BIN)/python -m service $(if $(filter command,$(firstword $(origin PORT))),--port '$(PORT)') $(ARGS)

test: $(DEVELOP)  ## run the tests but the slow ones, side by side; ARGS='-k name' for some of them
	$(if $(COVERAGE),$(BIN)/python -m coverage erase)
	$(BIN)/python $(if $(COVERAGE),-m coverage run $(THOROUGH),-m pytest $(PARALLEL)) $(ARGS)

check: lint types coverage containers  ## everything that has to pass before a commit

format: $(DEVELOP)  ## lay the code out, and mend what lint can mend
	$(BIN)/python -m ruff format
	$(BIN)/python -m ruff check --fix

lint: $(DEVELOP)  ## check layout and lint
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/hadolint Dockerfile docker/export.Dockerfile deploy/kuberay/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec $(COMPOSE)
	$(BIN)/compose-lint --quiet --skip-suppressed --fail-on low --config docker/compose-lint.yml $(COMPOSE)

types: $(DEVELOP)  ## check types
	$(BIN)/python -m mypy

coverage: $(DEVELOP)  ## run all tests but those of containers; fast ones cover 95 % of the service, 100 % of the client
	$(if $(COVERAGE),,$(MAKE) --no-print-directory test COVERAGE=add ARGS=)
	$(BIN)/python $(THOROUGH) -m slow --ignore=tests/slow/containers $(SLOW)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
	$(BIN)/python -m coverage report --include='service/*' --fail-under=95 --format=total
	$(BIN)/python -m coverage report --include='sdk/*' --fail-under=100 --format=total

containers: $(DEVELOP)  ## build the images and try them, where podman is
	$(BIN)/python -m pytest --slow tests/slow/containers $(ARGS)

budgets: $(DEVELOP)  ## print sizes of packages and documents, and files and calls of a request, against their budgets
	@$(BIN)/python -m tests.structure.budgets

lock: $(DEVELOP)  ## lock anew what the images and CI hold; ARGS=--upgrade for newer releases
	$(call lock,cpu,$(IN_IMAGES) --extra cpu --extra otel --extra store)
	$(call lock,gpu,$(IN_IMAGES) --extra gpu $(CUDA_13) --extra otel --extra store)
	$(call lock,gpu-cuda12,$(IN_IMAGES) --no-emit-package cuda-toolkit --extra otel --extra store docker/lock/gpu-cuda12.in)
	$(call lock,export,$(IN_IMAGES) --extra cpu --extra train)
	$(call lock,ray-cpu,$(IN_RAY) --extra cpu --extra ray --extra store docker/lock/ray.in)
	$(call lock,ray-gpu,$(IN_RAY) --extra gpu $(CUDA_13) --extra ray --extra store docker/lock/ray.in)
	$(call lock,ci,$(IN_CI) --extra cpu --extra train --extra avatars --extra dev docker/lock/ci.in)
	$(call lock,ci-ray,$(IN_CI) --extra cpu --extra bulk --extra ray --extra store docker/lock/ci-ray.in)
	@awk '/^[a-z0-9]/ { left = /$(TORCH)/ } !left' docker/lock/ci.txt > docker/lock/ci.tmp
	@mv docker/lock/ci.tmp docker/lock/ci.txt

# For Linux on x86_64, and the Python of the base images. The hashes are those of all files of a release, so the CPU's
# lock fits aarch64, too. CI's locks are for every platform and Python.
LINUX := --python-platform x86_64-manylinux_2_28
IN_IMAGES := $(LINUX) --python-version 3.13
IN_RAY := $(LINUX) --python-version 3.11
IN_CI := --universal --python-version 3.11
# cuda-toolkit is empty: it pins the others.
CUDA_13 := --no-emit-package cuda-toolkit docker/lock/gpu.in
# Where CI runs, torch is a build for the CPU, which PyPI does not have for Linux: neither it nor what it needs of CUDA is
# in the lock of CI.
TORCH := ^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==

# $(1) name, $(2) options and further requirements
define lock
	$(BIN)/python -m uv pip compile --quiet --generate-hashes --no-emit-package ign-client $(2) \
	  --custom-compile-command 'make lock' --output-file docker/lock/$(1).txt $(ARGS) pyproject.toml
endef

digests: $(DEVELOP)  ## write the digest of every base image behind its tag, where their registries can be reached
	$(BIN)/python docker/digests.py $(ARGS)

audit: $(DEVELOP)  ## look for known vulnerabilities in what is locked; status 3 if the database is out of reach
	@$(BIN)/python docker/audit.py $(ARGS)

# An environment that holds what the image of RUNTIME holds, from which its bill of materials and licences are read.
IMAGE := $(VENV)/image-$(RUNTIME)
$(IMAGE)/.made: docker/lock/$(RUNTIME).txt | $(DEVELOP)
	@$(PYTHON) -m venv --clear --without-pip $(IMAGE)
	@$(PIP) --python $(IMAGE)/bin/python install --quiet --no-deps --only-binary :all: --require-hashes -r $<
	@touch $@

sbom: $(IMAGE)/.made  ## write the bill of materials of RUNTIME's image, CycloneDX as JSON, into sbom/
	@mkdir -p sbom
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file sbom/ign-service-$(RUNTIME).cdx.json $(IMAGE)/bin/python

licences: $(IMAGE)/.made  ## list the licences of RUNTIME's image; ARGS for pip-licenses
	@$(BIN)/pip-licenses --python=$(IMAGE)/bin/python --order=license $(ARGS)

train: $(TRAIN)  ## train PRESET on DATA into OUT; again to continue
	@test -n '$(DATA)' || { echo 'DATA is missing: an .npz, a folder or zip of pictures, a torchvision name' >&2; exit 2; }
	$(BIN)/python -m model_export train --preset '$(PRESET)' --data '$(DATA)' --out '$(OUT)' $(ARGS)

export: $(TRAIN)  ## export the run in OUT as the next version of its model in MODELS
	$(BIN)/python -m model_export export --run '$(OUT)' --models '$(MODELS)' $(ARGS)

bench: $(DEVELOP)  ## measure, as JSON; BENCH is path, scheduler, service, peers, tiles or soak
	@$(BIN)/python -m benchmarks.$(BENCH_$(BENCH)) $(ARGS)

BENCH_path := bench_path
BENCH_scheduler := bench_scheduler
BENCH_service := bench_service
BENCH_peers := bench_peers
BENCH_tiles := bench_tiles
BENCH_soak := reliability.soak
ifndef BENCH_$(BENCH)
$(error BENCH=$(BENCH): expected path, scheduler, service, peers, tiles or soak)
endif

gpu: $(DEVELOP)  ## on a machine with a GPU, RUNTIME=gpu: test and measure, into runs/gpu; ARGS for the benchmark
	$(BIN)/python -m service --check --device cuda
	$(BIN)/python -m pytest -v -m gpu tests/gpu
	@$(BIN)/python -m benchmarks.bench_service --device cuda --results runs/gpu/gpu.json $(ARGS)

site: $(DEVELOP)  ## build the documentation site in build/site; from disk all works but `Try it here`, by `ign site`
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir build/site
	$(BIN)/ign site build/site/try $(ARGS)

version: $(DEVELOP)  ## write VERSION, such as 0.2.0, to every place that has the version
	@echo '$(VERSION)' | grep -qxE '[0-9]+(\.[0-9]+){2}' || { echo 'VERSION=$(VERSION): expected one such as 0.2.0' >&2; exit 2; }
	perl -pi -e 's/^((?:__version__|version) = "|  "ign-(?:client|service\[cpu\])==|ARG VERSION=|version: |appVersion: )[\d.]+/$${1}$(VERSION)/' \
	  service/__init__.py sdk/ign_client/_version.py pyproject.toml Dockerfile $(wildcard deploy/chart/*/Chart.yaml) \
	  $(wildcard plugins/*/pyproject.toml)
	perl -pi -e 's/^( *"version": ")[\d.]+/$${1}$(VERSION)/ if $$. < 10; close ARGV if eof' sdk/js/package*.json
	$(BIN)/python -m tests.helpers.openapi

# The revision of a tree with changes that are not committed ends with -dirty. podman keeps the health check only with
# ARGS='--format docker'.
images:  ## build the IMAGES (cpu, gpu) by ENGINE (docker, podman), tagged VERSION-cpu, labelled with version and commit
	for target in $(IMAGES); do $(ENGINE) build --target "$$target" --tag "ign-service:$(VERSION)-$$target" \
	  --build-arg VERSION='$(VERSION)' \
	  --build-arg REVISION="$$(git describe --always --dirty --abbrev=40 --exclude '*')" $(ARGS) . || exit; done

release: $(DEVELOP)  ## write packages, bills of materials, notes and checksums into DIST
	BIN='$(abspath $(BIN))' ENGINE='$(ENGINE)' REPOSITORY='$(REPOSITORY)' .ci/release '$(abspath $(DIST))'

openapi: $(DEVELOP)  ## write docs/openapi.json anew
	$(BIN)/python -m tests.helpers.openapi

# What pip finishes last is its own script: where that runs, the environment is whole. Else it is made anew.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed: make PYTHON=python3.x …' >&2; exit 2; }
	$(BIN)/pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(SERVE): pyproject.toml sdk/pyproject.toml | $(VENV)/.made
	$(call install,serve,$(RUNTIME))

$(TRAIN): pyproject.toml sdk/pyproject.toml | $(VENV)/.made
	$(call install,train,$(RUNTIME)$(comma)train)

$(DEVELOP): pyproject.toml sdk/pyproject.toml | $(VENV)/.made
	$(call install,develop,$(RUNTIME)$(comma)train$(comma)avatars$(comma)dev)
	@$(PIP) install --quiet perf-analyzer >/dev/null 2>&1 || echo 'no perf_analyzer for this platform: its tests will skip'
	@touch $(SERVE) $(TRAIN)

comma := ,

# $(1) name, $(2) extras. What another runtime's stamps promise holds no longer. An ign-service that contained the client
# leaves first: later, it would take the client's files with it. With LOCKED set, as in CI, everything but torch has the
# version and hashes of docker/lock/ci.txt. Torch comes from PIP_FIND_LINKS where its wheel lies there: on PyPI, the one
# for Linux brings 3 GB of CUDA.
define install
	@rm -f $(VENV)/.installed-$(if $(filter cpu,$(RUNTIME)),gpu,cpu)-*
	@$(PIP) uninstall -qq --yes $(OTHER_$(RUNTIME)) ign-service
	$(if $(LOCKED),$(PIP) install --quiet --require-hashes --requirement docker/lock/ci.txt)
	$(if $(LOCKED),@$(PIP) install --quiet --no-deps --no-index torch torchvision 2>/dev/null || true)
	$(PIP) install --quiet $(if $(LOCKED),--no-build-isolation) --editable ./sdk --editable '.[$(2)]'
	@touch $(VENV)/.installed-$(RUNTIME)-$(1)
endef
