#!/bin/sh
# run_tests.sh BUILD JOBS - build everything, run every test; fails too when fewer tests ran than there
# are test programs and claims (Criterion calls a run of zero tests a success).
set -eu
build="${1:?usage: $0 BUILD JOBS}"
jobs="${2:-2}"
floor="${PL_TEST_FLOOR:-300}"

cmake -S . -B "$build" -DCMAKE_BUILD_TYPE="${PL_BUILD_TYPE:-Release}" ${PL_CMAKE_ARGS:-} >/dev/null
make --no-print-directory -C "$build" -j"$jobs" 2>&1 | grep -E ' (warning|error): |\*\*\*' || true
make --no-print-directory -C "$build" -j"$jobs" >/dev/null
tools/check_layers.sh
tools/check_docs.sh
log="$build/tests.log"
status=0
# Programs side by side; then what starts processes of its own, which mostly wait.
ctest --test-dir "$build" --output-on-failure --timeout 900 -V -j"$jobs" -LE e2e >"$log" 2>&1 || status=$?
ctest --test-dir "$build" --output-on-failure --timeout 900 -V -j"$jobs" -L e2e >>"$log" 2>&1 || status=$?
grep -E 'tests passed|tests failed|(Failed|Timeout)\)' "$log" || true
if [ "$status" != 0 ]; then
    # What the failed programs said last: others print errors that their tests provoke.
    grep -oE '[0-9]+ - [^ ]+ \((Failed|Timeout|Not Run|SEGFAULT|.*aborted)\)' "$log" | while read -r number _; do
        grep -E "^$number: " "$log" | grep -E '\[(FAIL|ERR |----|CRASH!)\]|FAIL|rror|died|differ' | tail -n 20
        grep -E "^$number: " "$log" | tail -n 20
    done | cut -c1-400
    echo "FAILED; the whole log is $log"
    exit 1
fi
ran=$(grep -oE 'Tested: .*' "$log" | sed 's/\x1b\[[0-9;]*m//g' | grep -oE 'Tested: [0-9]+' | awk '{n += $2} END {print n + 0}')
skipped=$(grep -c 'SKIP' "$log" || true)
echo "$ran claims tested, $skipped skipped"
if [ "$ran" -lt "$floor" ]; then
    echo "FAILED: only $ran claims ran, $floor are expected" >&2
    exit 1
fi
