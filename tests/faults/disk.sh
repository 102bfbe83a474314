#!/bin/sh
# disk.sh SHIM [POINTS] - a disk that fails: ENOSPC, EIO, EROFS, EMFILE, EINTR and short writes at calls
# spread over all those by which a run with two workers stores something (tests/faults/shim.c), once or
# from there on.  The run goes on with the same bits, or ends with exit 74 or 75 and one message that
# names the file; its last checkpoint loads, and the same command continues it to the same bits.
. tests/faults/bed.sh
shim=$1
points=${2:-24}
calm

run_with_shim() { # run_with_shim DIR
    export LD_PRELOAD="$shim" FAULT_DIR="$1/" ASAN_OPTIONS="${ASAN_OPTIONS:-}:verify_asan_link_order=0"
    exec_run "$1"
}
(FAULT_LOG="$work/calls" && export FAULT_LOG && run_with_shim "$work/clean") >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "the run whose calls are counted"; }
grep -Ev '^(run 1 |worker)' "$work/calls" | sed 's/ [^ ]*\/clean\// /' >"$work/points"
total=$(wc -l <"$work/points")
[ "$total" -gt 200 ] || fail "only $total calls were seen: is the shim loaded?"

# fault_of CALL NUMBER: an error that this call can have
fault_of() {
    case $1 in
    open) set -- "$2" ENOSPC EMFILE EROFS EINTR ;;
    write | pwrite) set -- "$2" ENOSPC EIO short EINTR ;;
    fsync | fdatasync) set -- "$2" EIO ENOSPC EINTR EIO ;;
    bind) set -- "$2" ENOSPC EROFS ENOSPC EROFS ;;
    *) set -- "$2" ENOSPC EIO EROFS EIO ;;
    esac
    shift $(($1 % 4 + 1))
    echo "$1"
}
says() { # says LOG PATTERN POINT
    grep -qE "$2" "$1" || { cat "$1"; echo "$3: no /$2/ in the message"; return 1; }
}
point() { # point NUMBER ROLE K CALL PATH FAULT STICKY
    name="$2 call $3 ($4 $5): $6 $7"
    dir=$work/p$1
    log=$work/p$1.log
    code=0
    (
        export FAULT_ROLE="$2" FAULT_AT="$3" FAULT_WITH="$6"
        [ -z "$7" ] || export FAULT_STICKY=1
        run_with_shim "$dir"
    ) >"$log" 2>&1 || code=$?
    end="goes on"
    if [ $code != 0 ]; then
        end=$(grep -E "'$dir" "$log" | tail -n 1)
        case $code in 74 | 75) ;; *) cat "$log"; echo "$name: exit $code"; return 1 ;; esac
        says "$log" "^paceline: .*'$dir" "$name" || return 1
        for c in "$dir"/checkpoints/global_step_*; do
            [ ! -d "$c" ] || "$PACELINE" inspect "$c/policy" >/dev/null || { echo "$name: $c"; return 1; }
        done
        (exec_run "$dir") >"$log.2" 2>&1 || { cat "$log" "$log.2"; echo "$name: not continued"; return 1; }
    fi
    ! differs_from_calm "$dir" || { cat "$log"; echo "$name: other bits"; return 1; }
    rm -rf "$dir"
    echo "ok - $name: exit $code, $end" | sed "s|$dir|RUN|g"
}
i=0
while [ $i -lt "$points" ]; do
    at=$((1 + (2 * i + 1) * total / (2 * points)))
    read -r role k call path <<P
$(sed -n "${at}p" "$work/points")
P
    sticky=
    fault=$(fault_of "$call" $i)
    [ $((i / 2 % 2)) = 0 ] || [ "$fault" = EINTR ] || sticky="from there on"
    at_once point $i "$role" "$k" "$call" "$path" "$fault" "$sticky"
    i=$((i + 1))
done
all_done
checks=$((checks + points))
passed "$points faults at calls spread over $total"

# A limit of file sizes, below the optimizer's state: SIGXFSZ would kill, EFBIG is reported.
code=0
(ulimit -f 256 && exec_run "$work/small") >"$work/log" 2>&1 || code=$?
case $code in 74 | 75) ;; *) cat "$work/log"; fail "ulimit -f: exit $code" ;; esac
says "$work/log" "File too large" "ulimit -f" || fail "ulimit -f"
(exec_run "$work/small") >"$work/log" 2>&1 || { cat "$work/log"; fail "continued without the limit"; }
like_calm "$work/small" "a file larger than ulimit -f: a message, and continued with the same bits"

# A small disk, filled for true, then enlarged.
if unshare -rm true 2>/dev/null; then
    mkdir "$work/disk"
    code=0
    (export work && unshare -rm sh -c '. tests/faults/small_disk.sh') >"$work/log" 2>&1 || code=$?
    [ $code = 0 ] || { cat "$work/log"; fail "a disk that is full: exit $code"; }
    passed "a disk that is full: exit 74, a message with the remedy; enlarged, the same bits"
fi
echo "$checks checks"
