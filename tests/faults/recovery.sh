#!/bin/sh
# recovery.sh [STOPS [SEED [silent|killed]]] (both) - a worker falls silent (SIGSTOP: nobody starts it again) at
# random instants of a run: the time until each of its samples runs elsewhere, and the weights are
# those of the run in one process.  SIGCONT then lets it come back.  killed: SIGKILL instead; the
# supervisor starts it again, and the coordinator need not wait for the silence.
if [ $# -lt 3 ]; then
    sh "$0" "${1:-20}" "${2:-1}" silent && exec sh "$0" "${1:-20}" "${2:-1}" killed
    exit 1
fi
. tests/e2e/common.sh
: "${PACELINE_FAULTY:?tests/faults/faulty.c}"
stops=$1 seed=$2 how=$3
lost_ms=3000
limit_ms=$((lost_ms + 1000))
silence=$((lost_ms / 1000 + 2)) # s
tiny
run() { # run DIR WORKERS
    exec_tiny "$1" rollout.num_workers="$2" trainer.total_training_steps="$stops" trainer.save_freq="$stops" \
        trainer.compare_prompts=0 data.max_response_length=400 rollout.heartbeat_timeout=$((lost_ms / 1000))
}
(run "$work/base" 0) >"$work/log" 2>&1 || { cat "$work/log"; fail "the run in one process"; }
random() { # random N: 0 .. N-1
    seed=$(((seed * 1103515245 + 12345) % 2147483648))
    echo $((seed / 65536 % $1))
}
SEEN=1 SLOW_MS=10 PACELINE=$PACELINE_FAULTY
export SEEN SLOW_MS
dir=$work/run
(run "$dir" 2) >"$work/run.log" 2>&1 &
run=$!
trap 'kill $run 2>/dev/null || true; rm -rf "$work"' EXIT INT TERM
while ! grep -q 'event=lease ' "$work/run.log" && kill -0 $run 2>/dev/null; do sleep 0.05; done
n=0
while [ $n -lt "$stops" ] && kill -0 $run 2>/dev/null; do
    random 97 >/dev/null
    sleep "$(random 2).$(random 10)$(random 10)"
    # One of those that the newest samples began in; the other may have none.
    pid=$(grep 'event=runs' "$work/run.log" | tail -n 32 | sed -nE "$((1 + $(random 16))) s/.* pid=([0-9]+) .*/\1/p")
    name=worker-0
    [ "$(head -n 1 "$dir/$name.lock" 2>/dev/null)" = "$pid" ] || name=worker-1
    [ -n "$pid" ] || break
    echo "stopped t=$(date +%s.%N) pid=$pid name=$name" >>"$work/stops"
    if [ "$how" = killed ]; then
        kill -KILL "$pid" 2>/dev/null || break
        [ "$stops" -le 5 ] || sleep 12 # at most five starts a minute
    else
        kill -STOP "$pid" 2>/dev/null || break
        sleep $silence
        kill -CONT "$pid" 2>/dev/null || break
    fi
    n=$((n + 1))
    sleep 1
done
code=0
wait $run || code=$?
[ $code = 0 ] || { tail -n 60 "$work/run.log"; fail "the run ends with $code"; }
same "$(policy "$work/base" "$stops")" "$(policy "$dir" "$stops")" "the same weights after $n workers were $how"
[ -z "${KEEP:-}" ] || cp "$work/run.log" "$work/stops" "$KEEP"

# Of each stop: event=lost of the worker, the leases that it had as they leave again, and when each of
# them runs in another process.
cat "$work/stops" "$work/run.log" | awk -v limit=$limit_ms -v silence=$silence -v how="$how" '
    function value(key,   i) {
        for (i = 1; i <= NF; i++)
            if (index($i, key "=") == 1)
                return substr($i, length(key) + 2)
    }
    function count(s) {
        if (s && n_uids[s] > 0 && !open_uids[s]) {
            ms[++n] = int((last[s] - at[s]) * 1000)
            printf "%s %s: %d samples run elsewhere after %d ms, lost after %d ms\n", name[s], how, n_uids[s], ms[n], (lost[s] - at[s]) * 1000
        }
    }
    $1 == "stopped" { at[++n_stops] = value("t") + 0; name[n_stops] = value("name"); next }
    /event=lost/ {
        t = value("t") + 0 # numbers, not texts
        for (s = n_stops; s > 0; s--)
            if (index(value("name"), name[s]) == 1 && t >= at[s] && t < at[s] + silence)
                break
        now = s
        lost[s] = t
        left = value("leases") + 0
        next
    }
    /event=lease / && now && left > 0 {
        left--
        if (value("t") + 0 < lost[now] + 0.5) { owner[value("uid")] = now; n_uids[now]++; open_uids[now]++ }
        next
    }
    /event=runs/ {
        s = owner[value("uid")]
        if (s) { delete owner[value("uid")]; open_uids[s]--; last[s] = value("t") + 0; if (!open_uids[s]) count(s) }
    }
    END {
        for (i = 1; i <= n; i++)
            for (k = i; k > 1 && ms[k] < ms[k - 1]; k--) { x = ms[k]; ms[k] = ms[k - 1]; ms[k - 1] = x }
        p99 = int(0.99 * n + 0.999999)
        printf "%s: %d of %d stops hit a worker that had samples: median %d ms, p99 %d ms, limit %d ms\n", how, n, n_stops, ms[int((n + 1) / 2)], ms[p99], limit
        exit n_stops >= 10 && n < 1 || n > 0 && ms[p99] > limit # few stops may hit none
    }' || fail "recovery"
passed "its samples run elsewhere in time"
echo "$checks checks"
