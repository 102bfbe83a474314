# make demo: everything on a fresh machine, to a short RL run.  make test: everything that must hold.
# Thin: the build is CMake's, the packages are listed in tools/install_packages.sh.
BUILD ?= build
JOBS ?= $(shell nproc)
MODEL ?= models/SmolLM2-135M-Instruct.Q4_1.gguf
DEMO_ARGS ?=

.PHONY: all demo test soak bench fuzz sanitize packages test-packages clean

all: packages
	@cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release >/dev/null
	@$(MAKE) --no-print-directory -C $(BUILD) -j$(JOBS) paceline

packages:
	@tools/install_packages.sh build

test-packages:
	@tools/install_packages.sh test

# A finished demo is kept: the next one trains anew beside it; an interrupted one goes on.
demo: all
	@tools/get_model.sh "$(MODEL)"
	@dir=runs/quickstart; n=2; \
	while [ "$$(cat $$dir/latest 2>/dev/null)" = global_step_10 ]; do dir=runs/quickstart-$$n; n=$$((n + 1)); done; \
	set -x; $(BUILD)/paceline run configs/quickstart.yaml actor_rollout_ref.model.path="$(MODEL)" \
		trainer.default_local_dir=$$dir $(DEMO_ARGS)

test: test-packages
	@tools/run_tests.sh $(BUILD) $(JOBS)

# The long forms of what make test holds in short: millions of draws, minutes of fuzzing.
soak: test-packages
	@PL_CMAKE_ARGS=-DCMAKE_C_FLAGS=-DPL_TEST_ROWS=40000 tools/run_tests.sh $(BUILD)-soak $(JOBS)
	@tools/run_fuzz.sh $(BUILD)-fuzz 300
	@ctest --test-dir $(BUILD)-soak -C soak -L soak --output-on-failure
	@PL_SEEDS=8000 $(BUILD)-soak/tests/rollout/test_coordinator_faults
	@sh tests/spin/run.sh --soak
	@python3 tests/ipc/hostile.py $(BUILD)-soak/tests/ipc/hostile_server

bench: all
	@tools/get_model.sh "$(MODEL)"
	@for b in decode verify prefill train start memory; do $(BUILD)/paceline bench $$b --model "$(MODEL)" || exit 1; done

# Tests again under AddressSanitizer and UndefinedBehaviorSanitizer, threads under ThreadSanitizer.
sanitize: test-packages
	@tools/run_sanitized.sh $(BUILD)

fuzz:
	@tools/run_fuzz.sh $(BUILD)-fuzz

clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan $(BUILD)-fuzz $(BUILD)-soak
