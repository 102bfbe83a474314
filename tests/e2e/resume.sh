#!/bin/sh
# Claims: a run that is stopped and continued has the weights, moments and rollouts of one that was
# not; a signal ends a run with a checkpoint and exit code 75; an unfinished checkpoint is passed over.
. tests/e2e/common.sh
tiny
run_tiny "$work/whole" >"$work/log" 2>&1 || { cat "$work/log"; fail "a run of four steps"; }
[ "$(grep -c '"actor/pg_loss"' "$work/whole/metrics.jsonl")" = 4 ] || fail "four lines of metrics"
awk -F'"actor/grad_norm":' '{split($2, a, ","); if (a[1] > 0) n++} END {exit n < 2}' "$work/whole/metrics.jsonl" ||
    fail "the run has no gradients: this test would prove nothing"
differs "$(policy "$work/whole" 2)" "$(policy "$work/whole" 4)" "the weights move"

run_tiny "$work/parts" trainer.total_training_steps=2 >"$work/log" 2>&1
run_tiny "$work/parts" >"$work/log" 2>&1
grep -q 'resuming   after step 2' "$work/log" || fail "the run was not continued"
same "$(policy "$work/whole" 4)" "$(policy "$work/parts" 4)" "a continued run has the same weights"
same "$(optimizer "$work/whole" 4)" "$(optimizer "$work/parts" 4)" "and the same moments"
for s in 1 2 3 4; do
    rollouts "$work/whole" $s >"$work/a" && rollouts "$work/parts" $s >"$work/b"
    same "$work/a" "$work/b" "and the same rollouts in step $s"
done
[ "$(grep -c '"actor/pg_loss"' "$work/parts/metrics.jsonl")" = 4 ] || fail "metrics of a continued run"

# A torn checkpoint: the one before it is taken.
run_tiny "$work/torn" >"$work/log" 2>&1
: >"$work/torn/checkpoints/global_step_4/optimizer.safetensors"
run_tiny "$work/torn" >"$work/log" 2>&1 || { cat "$work/log"; fail "a torn checkpoint is passed over"; }
grep -q 'resuming   after step 2' "$work/log" || { cat "$work/log"; fail "an older checkpoint is taken"; }
same "$(policy "$work/whole" 4)" "$(policy "$work/torn" 4)" "a damaged checkpoint costs two steps, no bits"

# A signal: checkpoint, 75, and the rest of the run is the same.
exec_tiny "$work/signal" trainer.save_freq=0 trainer.total_training_steps=400 >"$work/log" 2>&1 &
pid=$!
tries=0
while [ ! -f "$work/signal/rollouts/step_000001.jsonl.zst" ] && [ $tries -lt 3000 ]; do
    kill -0 $pid 2>/dev/null || break
    tries=$((tries + 1))
    sleep 0.02
done
kill -TERM $pid 2>/dev/null || true
code=0
wait $pid || code=$?
step=$(sed -nE 's/.*stopped after step ([0-9]+), .*/\1/p' "$work/log")
if [ $code = 75 ]; then
    grep -qE 'stopped after step [1-9]' "$work/log" || { cat "$work/log"; fail "what a stopped run says"; }
    passed "a signal ends a run with exit 75 and a checkpoint"
else
    cat "$work/log"
    fail "exit $code after a signal"
fi
run_tiny "$work/signal" trainer.total_training_steps=$((step + 2)) >"$work/log" 2>&1 || { cat "$work/log"; fail "after a signal"; }
run_tiny "$work/calm" trainer.total_training_steps=$((step + 2)) >"$work/log" 2>&1
same "$(policy "$work/calm" $((step + 2)))" "$(policy "$work/signal" $((step + 2)))" \
    "a stopped run ends with the same weights"
echo "$checks checks"
