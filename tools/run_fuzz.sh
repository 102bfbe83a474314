#!/bin/sh
# run_fuzz.sh BUILD [SECONDS] - every fuzz target for a short time, over its committed corpus, with
# clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.
set -eu
build="${1:-build-fuzz}"
seconds="${2:-15}"
tools/install_packages.sh fuzz
CC=clang cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPL_SANITIZE=address,undefined -DPL_FUZZ=ON >/dev/null
make --no-print-directory -C "$build" -j"$(nproc)" fuzz >/dev/null
for target in "$build"/tests/fuzz/fuzz_*; do
    [ -x "$target" ] && [ -f "$target" ] || continue
    name=$(basename "$target")
    corpus="tests/fuzz/corpus/${name#fuzz_}"
    work=$(mktemp -d)
    if ! ASAN_OPTIONS=detect_leaks=1 "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$work/" "$work" "$corpus" >"$work.log" 2>&1; then
        tail -n 40 "$work.log"
        echo "$name found something: $work" >&2
        exit 1
    fi
    echo "$name: $(grep -oE 'Done [0-9]+ runs' "$work.log" || echo finished), nothing found"
    rm -rf "$work" "$work.log"
done
