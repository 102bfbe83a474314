#!/bin/sh
# Claims: any number of worker processes gives the bits of the run in one process; workers join and
# leave by hand; a user's reward command gives the same rewards in both forms.
. tests/e2e/common.sh
tiny
run_tiny "$work/base" >"$work/log" 2>&1 || { cat "$work/log"; fail "the run in one process"; }
like_base() { # like_base DIR CLAIM
    same "$(policy "$work/base" 4)" "$(policy "$1" 4)" "$2: the same weights"
    same "$(optimizer "$work/base" 4)" "$(optimizer "$1" 4)" "$2: the same moments"
    for s in 1 2 3 4; do
        rollouts "$work/base" $s >"$work/a" && rollouts "$1" $s >"$work/b"
        same "$work/a" "$work/b" "$2: the same rollouts in step $s"
    done
}
for n in 1 2 3 7; do
    run_tiny "$work/w$n" rollout.num_workers=$n >"$work/log" 2>&1 || { cat "$work/log"; fail "$n workers"; }
    like_base "$work/w$n" "$n workers"
    grep -q 'compared: same bits' "$work/log" || { cat "$work/log"; fail "$n workers: the closing comparison"; }
    rm -rf "$work/w$n"
done

# Resumed in the other form, each way.
run_tiny "$work/mixed" trainer.total_training_steps=2 rollout.num_workers=2 >"$work/log" 2>&1 || { cat "$work/log"; fail "two steps"; }
run_tiny "$work/mixed" rollout.num_workers=0 >"$work/log" 2>&1 || { cat "$work/log"; fail "two more in one process"; }
like_base "$work/mixed" "begun with workers, ended without"

# A worker of another terminal joins, is told to leave, and leaves; the run goes on.
exec_tiny "$work/joined" rollout.num_workers=1 >"$work/log" 2>&1 &
run=$!
tries=0
while [ ! -f "$work/joined/endpoint" ] && [ $tries -lt 500 ]; do tries=$((tries + 1)); sleep 0.02; done
"$PACELINE" worker --connect "$work/joined" >"$work/worker" 2>&1 &
worker=$!
while [ ! -f "$work/joined/rollouts/step_000001.jsonl.zst" ] && kill -0 $run 2>/dev/null; do sleep 0.02; done
kill -TERM $worker 2>/dev/null || true
code=0
wait $worker || code=$?
[ $code = 0 ] || { cat "$work/worker"; fail "a worker that leaves: exit $code"; }
wait $run || { cat "$work/log"; fail "the run that it left"; }
like_base "$work/joined" "a worker that joins and leaves"

# The user's own reward, in both forms.
cat >"$work/reward.sh" <<'R'
#!/bin/sh
while read -r line; do
    id=$(printf '%s' "$line" | sed -E 's/^\{"id":([0-9]+),.*/\1/')
    n=$(printf '%s' "$line" | sed -E 's/.*"solution_str":"(([^"\\]|\\.)*)".*/\1/' | tr -cd 'aeiou' | wc -c)
    echo "{\"id\":$id,\"score\":0.$n}"
done
R
for n in 0 2; do
    run_tiny "$work/reward$n" rollout.num_workers=$n reward.command="sh $work/reward.sh" trainer.total_training_steps=2 \
        >"$work/log" 2>&1 || { cat "$work/log"; fail "reward.command with $n workers"; }
done
same "$(policy "$work/reward0" 2)" "$(policy "$work/reward2" 2)" "reward.command: the same weights in both forms"
differs "$(policy "$work/base" 2)" "$(policy "$work/reward0" 2)" "and other ones than the built-in reward's"
echo "$checks checks"
