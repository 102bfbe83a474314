#!/bin/sh
# check_layers.sh - who may include whom (docs/ARCHITECTURE.md, "Modules").  Prints each include that
# breaks the graph, and what must not stand in C: comments of the other kind, getenv in modules,
# exit or abort in a library, -ffast-math.
set -eu
allowed() {
    case "$1" in
    core) echo "core" ;;
    tensor) echo "core tensor" ;;
    ipc) echo "core ipc" ;;
    model) echo "core tensor model" ;;
    drafter) echo "core tensor model drafter" ;;
    verifier) echo "core tensor model verifier" ;;
    rollout) echo "core tensor model drafter verifier ipc rollout" ;;
    trainer) echo "core tensor model drafter ipc trainer" ;;
    monitor) echo "core ipc monitor" ;;
    cli) echo "core tensor ipc model drafter verifier rollout trainer monitor cli" ;;
    esac
}
bad=0
for module in core tensor ipc model drafter verifier rollout trainer monitor cli; do
    [ -d "$module" ] || continue
    may=" $(allowed $module) "
    for found in $(find "$module" -name '*.[ch]' -exec grep -hoE '#include "[a-z]+/' {} + | sort -u | sed 's/.*"//; s,/,,'); do
        case "$may" in
        *" $found "*) ;;
        *)
            echo "$module includes $found/:"
            grep -rn "#include \"$found/" "$module" | head -n 3
            bad=1
            ;;
        esac
    done
done
# A folder's internal.h is its own.
for module in model drafter rollout trainer; do
    if grep -rln "#include \"$module/internal.h\"" --include='*.[ch]' . 2>/dev/null |
        grep -vE "^\./($module|tests|bench|build[^/]*)/"; then
        echo "^ includes $module/internal.h from outside"
        bad=1
    fi
done
sources="core tensor ipc model drafter verifier rollout trainer monitor"
# shellcheck disable=SC2086
if grep -rnE '\bgetenv\(' --include='*.[ch]' $sources; then echo "^ getenv in a module"; bad=1; fi
# shellcheck disable=SC2086
if grep -rnE '\b(exit|abort)\(' --include='*.[ch]' $sources; then echo "^ exit or abort in a library"; bad=1; fi
# shellcheck disable=SC2086
if grep -rnE '(^|[[:space:];{}])//([^/]|$)' --include='*.[ch]' $sources cli tests bench; then
    echo "^ comments are /* */"; bad=1
fi
if grep -rnE '^[^#]*(-ffast-math|-Ofast)' --include=CMakeLists.txt . ; then
    echo "^ breaks law 1"; bad=1
fi
exit $bad
