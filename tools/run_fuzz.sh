#!/bin/sh
# run_fuzz.sh BUILD [SECONDS] - every fuzz target for a short time, over its committed corpus, with
# clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer; one target a core at a time.
# run_fuzz.sh --one SECONDS TARGET - one of them.
set -eu
if [ "${1:-}" = --one ]; then
    seconds=$2 target=$3
    name=$(basename "$target")
    work=$(mktemp -d)
    if ! ASAN_OPTIONS=detect_leaks=1 "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$work/" "$work" "tests/fuzz/corpus/${name#fuzz_}" >"$work.log" 2>&1; then
        tail -n 40 "$work.log"
        echo "$name found something: $work" >&2
        exit 1
    fi
    echo "$name: $(grep -oE 'Done [0-9]+ runs' "$work.log" || echo finished), nothing found"
    rm -rf "$work" "$work.log"
    exit 0
fi
build="${1:-build-fuzz}"
seconds="${2:-15}"
tools/install_packages.sh fuzz
CC=clang cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPL_SANITIZE=address,undefined -DPL_FUZZ=ON >/dev/null
make --no-print-directory -C "$build" -j"$(nproc)" fuzz >/dev/null
find "$build/tests/fuzz" -maxdepth 1 -name 'fuzz_*' -type f -perm -u+x | sort |
    xargs -P "$(nproc)" -n 1 "$0" --one "$seconds"
