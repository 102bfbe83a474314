#!/bin/sh
# check_docs.sh - every `file:function` and every path that the documents name exists; no file or
# function has outgrown its limit without standing in tools/size_exceptions.txt.
set -eu
bad=0
for doc in README.md docs/*.md; do
    [ -f "$doc" ] || continue
    for name in $(grep -oE '`[a-z_]+(/[a-z0-9_]+)*\.[ch]:[a-z_0-9]+`' "$doc" | tr -d '\`' | sort -u); do
        file=${name%%:*}
        function=${name##*:}
        if ! [ -f "$file" ] || ! grep -qE "(^|[^a-z_0-9])$function\(" "$file"; then
            echo "$doc names $name, which is not there"
            bad=1
        fi
    done
    for path in $(grep -oE '`(core|tensor|ipc|model|drafter|verifier|rollout|trainer|monitor|cli|configs|bench|tests|docs|tools)/[A-Za-z0-9_./-]+`' "$doc" | tr -d '\`' | grep -v ':' | sort -u); do
        if ! [ -e "${path%/}" ]; then
            echo "$doc names $path, which is not there"
            bad=1
        fi
    done
done
# Sizes: STYLE of this project; a file of 600 lines or a function of 80 has a reason on the list.
for file in $(git ls-files '*.c' 2>/dev/null || find . -name '*.c' -not -path './build*' -printf '%P\n'); do
    case "$file" in tests/* | bench/*) continue ;; esac
    [ -f "$file" ] || continue
    lines=$(wc -l <"$file")
    if [ "$lines" -gt 600 ] && ! grep -qs "^$file " tools/size_exceptions.txt; then
        echo "$file: $lines lines"
        bad=1
    fi
    awk -v f="$file" 'FNR == 1 {n = ""} /^[a-z].*[a-z_0-9]\(/ && !/;$/ {n = $0; l = FNR}
        /^}/ {if (n != "" && FNR - l > 80) printf "%s:%d: a function of %d lines\n", f, l, FNR - l; n = ""}' "$file" >"${TMPDIR:-/tmp}/pl_sizes.$$"
    while IFS= read -r found; do
        if ! grep -qs "^${found%%: *} " tools/size_exceptions.txt && ! grep -qs "^$file " tools/size_exceptions.txt; then
            echo "$found"
            bad=1
        fi
    done <"${TMPDIR:-/tmp}/pl_sizes.$$"
    rm -f "${TMPDIR:-/tmp}/pl_sizes.$$"
done
exit $bad
