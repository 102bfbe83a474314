#!/bin/sh
# run_sanitized.sh BUILD - the tests under AddressSanitizer and UndefinedBehaviorSanitizer (gcc), the
# thread programs under ThreadSanitizer.  Criterion hides leaks: they go to log files, and any file
# fails the run.
set -eu
build="${1:-build}"
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
cmake -S . -B "$build-asan" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPL_SANITIZE=address,undefined >/dev/null
make --no-print-directory -C "$build-asan" -j"$(nproc)" 2>&1 | grep -E ' (warning|error): |\*\*\*' || true
make --no-print-directory -C "$build-asan" -j"$(nproc)" >/dev/null
printf 'leak:%s\n' libcriterion.so libdnnl.so >"$logs/suppressions" # not ours
ASAN_OPTIONS="log_path=$logs/asan:detect_leaks=1:abort_on_error=0" \
    LSAN_OPTIONS="suppressions=$logs/suppressions:print_suppressions=0" \
    PL_SANITIZED=1 ctest --test-dir "$build-asan" -j"$(nproc)" --timeout 1800 -LE slow --output-on-failure >"$build-asan/tests.log" 2>&1 ||
    { tail -n 80 "$build-asan/tests.log"; head -qn 25 "$logs"/asan.* 2>/dev/null; exit 1; }
grep -E 'tests passed' "$build-asan/tests.log"
found=0
for f in "$logs"/asan.*; do
    [ -s "$f" ] || continue
    found=1
    head -n 40 "$f"
done
[ "$found" = 0 ] || { echo "sanitizers reported the above" >&2; exit 1; }

cmake -S . -B "$build-tsan" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPL_SANITIZE=thread >/dev/null
make --no-print-directory -C "$build-tsan" -j"$(nproc)" threads_main >/dev/null
# TSan wants a fixed address layout on kernels with much entropy.
setarch "$(uname -m)" -R "$(find "$build-tsan" -name threads_main -type f | head -n 1)"
echo "thread programs are clean"
