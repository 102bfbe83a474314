#!/bin/sh
# syscalls.sh [POINTS] - kill -9 at system calls spread over all those by which coordinator, trainer and
# worker of a run store, send or wait: strace kills the process as it enters the k-th call of a kind, and
# then paceline run adopts the others and goes on.  0 differing bits in samples and weights, no step
# consumed twice with others.  The processes are started by hand at first: strace stands before one.
. tests/faults/bed.sh
points=${1:-40}
strace -f -o /dev/null true 2>/dev/null || { echo "strace cannot trace here: skipped"; exit 77; }
calm
(exec_run "$work/whole") >"$work/log" 2>&1 || { cat "$work/log"; fail "the run with a supervisor"; }
ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0 # LeakSanitizer does not work under ptrace
export ASAN_OPTIONS

store=pwrite64,write,writev,fdatasync,fsync,rename,renameat2,ftruncate,openat,unlink,unlinkat,mkdir
talk=sendto,sendmsg
wait=futex,epoll_wait,poll,read,recvfrom

begin() { # begin ROLE [STRACE...]: that process of the run in $dir, in the background; its id in $pid
    role=$1
    shift
    case $role in
    coordinator) set -- "$@" "$PACELINE" coordinator "$dir" ;;
    trainer) set -- "$@" "$PACELINE" trainer --connect "$dir" ;;
    *) set -- "$@" "$PACELINE" worker --connect "$dir" --name "$role" --threads 1 ;;
    esac
    timeout -k 5 "${PACELINE_SECONDS:-40}" "$@" >>"$log" 2>&1 &
    pid=$!
}
# play NAME VICTIM STRACE...: a run in which VICTIM dies under strace, if that kills it, and is started
# again.  Says in $work/NAME.killed whether it did.
play() {
    dir=$work/$1 log=$work/$1.log name=$1 victim=$2
    shift 2
    mkdir "$dir"
    sed "s|default_local_dir: .*|default_local_dir: $dir|" "$work/whole/config.yaml" >"$dir/config.yaml"
    : >"$dir/lock"
    others=
    for r in coordinator trainer worker-0 worker-1; do
        if [ $r = "$victim" ]; then
            begin $r strace "$@"
            victim_pid=$pid
        else
            begin $r
            others="$others $pid"
        fi
        [ $r != trainer ] || trainer=$pid
    done
    code=0
    wait "$victim_pid" 2>/dev/null || code=$?
    if [ $code = 137 ]; then
        echo killed >"$work/$name.killed"
        code=0
        (exec_run "$dir") >>"$log" 2>&1 || code=$?
    elif [ "$trainer" != "$victim_pid" ]; then
        wait "$trainer" || code=$?
    fi
    # shellcheck disable=SC2086
    kill -TERM $others 2>/dev/null || true # who was joining just then has not heard that it is over
    wait
    [ $code = 0 ] || { cat "$log"; echo "$victim: exit $code"; return 1; }
}
# what can be hit in a clean run: "call k", in the order of time, k as strace counts (by thread)
points_of() { # points_of VICTIM SET
    play "clean-$1" "$1" -f -o "$work/$1.strace" -e trace="$2" || fail "the run whose calls are counted"
    awk '{ call = $2; sub(/\(.*/, "", call) }
        call !~ /^[a-z_0-9]+$/ { next }
        { k = ++n[$1 " " call] }
        call == "openat" && !/O_CREAT/ { next }
        !((call, k) in seen) { seen[call, k] = 1; print call, k }' "$work/$1.strace" >"$work/$1.points"
    rm "$work/$1.strace"
    [ "$(wc -l <"$work/$1.points")" -gt 50 ] || fail "$1: hardly a call was seen"
}
point() { # point NUMBER VICTIM CALL K
    play "p$1" "$2" -f -qq -o /dev/null -e trace="$3" -e inject="$3":signal=SIGKILL:when="$4" ||
        { echo "$2 at $3 $4"; return 1; }
    ! differs_from_calm "$work/p$1" || { cat "$log"; echo "killed $2 at $3 $4: other bits"; return 1; }
    rm -rf "$work/p$1"
}
i=0
for victim in coordinator trainer worker-0; do
    set=$store,$talk
    n=$((points * 2 / 5))
    [ $victim != worker-0 ] || { set=$store,$talk,$wait n=$((points - 2 * n)); }
    (points_of $victim $set) || fail "$victim"
    total=$(wc -l <"$work/$victim.points")
    at=0
    while [ $at -lt $n ]; do
        line=$(sed -n "$((1 + (2 * at + 1) * total / (2 * n)))p" "$work/$victim.points")
        i=$((i + 1))
        at_once point $i $victim "${line% *}" "${line#* }"
        at=$((at + 1))
    done
    all_done
    passed "$victim: $n of $total calls, 0 differing bits"
done
killed=$(find "$work" -name 'p*.killed' | wc -l)
[ $((2 * killed)) -ge "$points" ] || fail "only $killed of $points points were reached"
echo "$checks checks, $killed of $points were killed"
