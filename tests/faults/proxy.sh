#!/bin/sh
# proxy.sh [STEPS [SEED [NAME ...]]] - a run whose every message passes tests/faults/proxy: whatever it does
# to them, samples and weights are those of the run in one process, and the damage is counted.
. tests/e2e/common.sh
: "${PROXY:?tests/faults/proxy}" "${PACELINE_FAULTY:?paceline_faulty of the same folder}"
steps=${1:-6}
seed=${2:-1}
[ $# = 0 ] || shift
[ $# = 0 ] || shift
names=${*:-loss dup reorder damage delay all}
SEEN=1 # it says what it counted
export SEEN
faults() { # faults NAME: what the proxy does
    case $1 in
    loss) echo --loss 30 ;;
    dup) echo --dup 50 ;;
    reorder) echo --reorder 30 ;;
    damage) echo --truncate 10 --flip 10 ;;
    delay) echo --delay 50 ;;
    headless) echo --headless 2 ;;
    some) echo --loss 5 --dup 30 --reorder 20 --truncate 3 --flip 3 --delay 5 ;;
    all) echo --loss 30 --dup 50 --reorder 30 --truncate 10 --flip 10 --delay 10 ;;
    *) fail "no faults are called $1" ;;
    esac
}

tiny
few="trainer.total_training_steps=$steps trainer.save_freq=$steps trainer.compare_prompts=0"
# shellcheck disable=SC2086 # a list of words
run_tiny "$work/base" $few >"$work/log" 2>&1 || { cat "$work/log"; fail "the run in one process"; }
s=1
while [ $s -le "$steps" ]; do
    rollouts "$work/base" $s >"$work/step$s"
    s=$((s + 1))
done

# wait_for FILE: made by a process that was just started
wait_for() {
    tries=0
    while [ ! -s "$1" ] && [ $tries -lt 1500 ]; do tries=$((tries + 1)); sleep 0.02; done
    [ -s "$1" ] || fail "$1 is not there"
}
# started NAME COMMAND...: in the background, its output in NAME.log
started() {
    name=$1
    shift
    "$@" >"$dir/$name.log" 2>&1 &
    pid=$!
    children="$children $pid"
}
finished() { # finished PID NAME: with code 0
    code=0
    wait "$1" || code=$?
    [ $code = 0 ] || { tail -n 40 "$dir"/*.log; fail "$faulty: $2 ends with $code"; }
}
# A whole run behind a proxy; the supervisor's lock is held by hand.
run_behind() { # run_behind NAME
    faulty=$1 dir=$work/$1 children=""
    trap 'kill $children 2>/dev/null || true' EXIT
    mkdir "$dir"
    cp "$work/base/config.yaml" "$dir/config.yaml"
    started lock flock --no-fork "$dir/lock" sleep 2000
    started coordinator "$PACELINE_FAULTY" coordinator "$dir"
    coordinator=$pid
    wait_for "$dir/endpoint"
    # shellcheck disable=SC2046 # a list of words
    started proxy "$PROXY" "ipc://$dir/proxy.sock" "$(head -n 1 "$dir/endpoint")" --seed "$seed" $(faults "$faulty")
    proxy=$pid
    echo "ipc://$dir/proxy.sock" >"$dir/endpoint.tmp"
    mv "$dir/endpoint.tmp" "$dir/endpoint"
    t0=$(date +%s)
    started trainer timeout "${PATIENCE:-900}" "$PACELINE_FAULTY" trainer --connect "$dir"
    trainer=$pid
    started worker-0 "$PACELINE_FAULTY" worker --connect "$dir" --name worker-0 --threads 1
    workers=$pid
    started worker-1 "$PACELINE_FAULTY" worker --connect "$dir" --name worker-1 --threads 1
    workers="$workers $pid"
    finished $trainer "the trainer"
    seconds=$(($(date +%s) - t0))
    finished $coordinator "the coordinator"
    # Their STOP may be lost, and there is nobody left who says it again.
    # shellcheck disable=SC2086
    kill $workers 2>/dev/null || true
    for pid in $workers; do wait "$pid" || true; done
    kill $proxy
    wait $proxy || fail "$faulty: the proxy"
    same "$(policy "$work/base" "$steps")" "$(policy "$dir" "$steps")" "$faulty: the same weights after $steps steps, $seconds s"
    s=1
    while [ $s -le "$steps" ]; do
        rollouts "$dir" $s >"$dir/step$s"
        cmp "$work/step$s" "$dir/step$s" || fail "$faulty: other rollouts in step $s"
        s=$((s + 1))
    done
    passed "$faulty: the same rollouts in all steps"
    cat "$dir/proxy.log"
    for who in coordinator trainer worker-0 worker-1; do
        sed -nE "s/.*event=counted (socket=[^ ]*)?/$who:/p" "$dir/$who.log"
    done
    damaged=$(sed -nE 's/.* damaged=([0-9]+) .*/\1/p' "$dir/proxy.log")
    detected=$(sed -nE 's/.*event=counted.* malformed=([0-9]+).*/\1/p' "$dir"/*.log | awk '{n += $1} END {print n + 0}')
    doubled=$(sed -nE 's/.*event=counted.* duplicates=([0-9]+).*/\1/p' "$dir/coordinator.log")
    echo "$faulty: $damaged messages damaged, $detected refused as such, $doubled results came twice"
    # The last ones find nobody who still reads; a peer that was forgotten (headless) is not read either.
    if [ "$faulty" != headless ] && [ "$damaged" -gt 0 ]; then
        [ "$detected" -le "$damaged" ] && [ "$detected" -ge $((damaged - 2)) ] ||
            fail "$faulty: $damaged messages were damaged, $detected were found"
        passed "$faulty: every damaged message was found out"
    fi
}
# All at once: they wait most of the time.
for name in $names; do
    (run_behind "$name") >"$work/$name.out" 2>&1 &
    eval "pid_of_$name=$!"
done
failed=0
for name in $names; do
    eval "pid=\$pid_of_$name"
    wait "$pid" || failed=$((failed + 1))
    cat "$work/$name.out"
    [ -z "${KEEP:-}" ] || { mkdir -p "$KEEP/$name"; cp "$work/$name"/*.log "$KEEP/$name"; }
done
[ $failed = 0 ] || fail "$failed of: $names (seed $seed)"
echo "$(cat "$work"/*.out | grep -c '^ok') checks"
