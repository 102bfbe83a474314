#!/bin/sh
# signals.sh - a run that is doubled, frozen, stopped, or cut off as by a power failure, and then goes on
# or is continued: 0 differing bits.  And run directories with spaces, and longer than a socket's path.
. tests/faults/bed.sh
calm
start() { # start DIR: the run in the background, its id in $run
    (exec_run "$1") >"$work/log" 2>&1 &
    run=$!
    dir=$1
}
holder() { head -n 1 "$dir/$1.lock"; }
is_locked() { ! flock -n "$dir/$1" true; }
has() { [ -s "$dir/$1" ]; }
step_is_written() { [ -f "$dir/rollouts/step_00000$1.jsonl.zst" ]; }
ends_with() { # ends_with CODE CLAIM
    code=0
    wait "$run" || code=$?
    [ $code = "$1" ] || { cat "$work/log"; fail "$2: exit $code, expected $1"; }
}
continued() { # continued CLAIM: the same command, to the end
    (exec_run "$dir") >"$work/log" 2>&1 || { cat "$work/log"; fail "$1: exit $?"; }
    like_calm "$dir" "$1"
}

# Two of a kind.
steps=300
start "$work/double"
until_true 20 has worker-0.lock || fail "the run did not begin"
until_true 20 step_is_written 1 || fail "the run did not begin"
expect 74 "another process is running in '$dir'" "a second supervisor is refused" -- \
    sh -c ". tests/e2e/common.sh; work=$work; exec_tiny '$dir' rollout.num_workers=2"
expect 69 "another process holds '$dir/coordinator.lock'" "a second coordinator is refused" -- \
    "$PACELINE" coordinator "$dir"
kill -TERM "$run"
ends_with 75 "SIGTERM to the supervisor"
steps=3

# Others ask whether a place is taken, by holding its lock for a moment.
mkdir "$work/asked"
for name in lock coordinator.lock trainer.lock worker-0.lock; do
    flock -s "$work/asked/$name" sleep 0.3 &
done
start "$work/asked"
ends_with 0 "a run whose places are asked about"
like_calm "$dir" "places that are asked about are taken all the same"

# Frozen for twice the silence that means lost.
start "$work/frozen"
until_true 20 has coordinator.lock || fail "the run did not begin"
until_true 20 has endpoint || fail "the run did not begin"
kill -STOP "$(holder coordinator)"
sleep 6
kill -CONT "$(holder coordinator)"
ends_with 0 "a coordinator that was frozen"
like_calm "$dir" "a coordinator frozen for 6 s: goes on"

# Stopped in order, at whatever a run does after such a time: joining, rollout, update, checkpoint.
i=0
for sig in TERM INT TERM INT; do
    i=$((i + 1))
    start "$work/$sig$i"
    case $i in
    1 | 2) until_true 20 has worker-1.lock || fail "the run did not begin" ;;
    *) until_true 20 step_is_written $((i - 2)) || fail "the run did not begin" ;;
    esac
    kill -$sig "$run"
    code=0
    wait "$run" || code=$?
    case $code in
    0 | 75) ;;
    *) cat "$work/log"; fail "SIG$sig to the supervisor: exit $code" ;;
    esac
    for lock in lock coordinator.lock trainer.lock worker-0.lock worker-1.lock; do
        ! is_locked $lock || fail "SIG$sig: $lock is still held"
    done
    continued "SIG$sig to the supervisor, exit $code: continued"
done

# Workers: one that is asked to leave, all killed at once.
start "$work/leaver"
until_true 20 has worker-1.lock || fail "the run did not begin"
kill -TERM "$(holder worker-1)" 2>/dev/null || true
ends_with 0 "a worker that is asked to leave"
like_calm "$dir" "SIGTERM to a worker: the run goes on without it"
start "$work/workers"
until_true 20 has worker-1.lock || fail "the run did not begin"
until_true 20 has worker-0.lock || fail "the run did not begin"
kill -9 "$(holder worker-0)" "$(holder worker-1)" 2>/dev/null || true
ends_with 0 "workers that are killed"
like_calm "$dir" "all workers killed at once: started again"

# Power: all at once, five times, then continued.
i=0
dir=$work/power
while [ $i -lt 5 ]; do
    start "$dir"
    case $i in
    0) until_true 20 has endpoint || true ;;
    1) until_true 20 has worker-0.lock || true ;;
    *) until_true 20 step_is_written $((i - 1)) || true ;;
    esac
    for lock in lock coordinator.lock trainer.lock worker-0.lock worker-1.lock; do
        ! is_locked $lock || kill -9 "$(head -n 1 "$dir/$lock")" 2>/dev/null || true
    done
    wait "$run" 2>/dev/null || true
    i=$((i + 1))
done
continued "all processes killed at once, five times: continued"

# Names.
start "$work/a run with spaces"
ends_with 0 "a run directory with spaces"
like_calm "$dir" "a run directory with spaces"
start "$work/$(printf '%0120d' 7)"
ends_with 0 "a run directory of more than 107 bytes"
like_calm "$dir" "a run directory of more than 107 bytes"
echo "$checks checks"
