#!/bin/sh
# session.sh - the spot trainer in real processes: three workers whose last samples are put together,
# so that the others train the drafter; versions are published and put into use while samples run;
# workers in a session, its lead too, the coordinator and the trainer are killed.  0 differing bits, and
# the drafter was trained.
. tests/e2e/common.sh
"$PACELINE" tiny "$work/tiny" --init-std 0.08 --layers 6 --hidden 256 >/dev/null
run() { # run DIR [key=value ...]
    dir=$1
    shift
    exec_tiny "$dir" data.train_batch_size=2 data.max_response_length=480 rollout.ignore_eos=true \
        rollout.temperature=0.6 trainer.total_training_steps=5 trainer.save_freq=5 trainer.compare_prompts=0 "$@"
}
(run "$work/base") >"$work/log" 2>&1 || { cat "$work/log"; fail "the run without"; }
start() {
    (run "$work/run" rollout.num_workers=3 rollout.consolidate_below=16 speculative.method=auto \
        speculative.drafter.init=random speculative.train.buffer_mb=32 speculative.train.gate_seconds=0 \
        speculative.train.gate_tokens=64 speculative.train.gate_samples=2) >>"$work/log" 2>&1 &
    run_pid=$!
}
: >"$work/log"
start
tries=0 # until somebody trains
while [ ! -f "$work/run/drafter/state" ] && kill -0 $run_pid 2>/dev/null && [ $tries -lt 1500 ]; do
    tries=$((tries + 1))
    sleep 0.02
done
killed=0
for role in worker-0 worker-1 worker-2 coordinator trainer worker-0 worker-1; do
    sleep 0.7
    kill -0 $run_pid 2>/dev/null || break
    pid=$(head -n 1 "$work/run/$role.lock" 2>/dev/null || true)
    [ -n "$pid" ] && kill -9 "$pid" 2>/dev/null && killed=$((killed + 1))
done
code=0
wait $run_pid || code=$?
[ $code = 0 ] || { cat "$work/log"; fail "the run: exit $code"; }
[ $killed -ge 3 ] || fail "only $killed processes could be killed: the run was too short"
same "$(policy "$work/base" 5)" "$(policy "$work/run" 5)" "sessions, swaps and $killed kills: the same weights"
for s in 1 2 3 4 5; do
    rollouts "$work/base" $s >"$work/a" && rollouts "$work/run" $s >"$work/b"
    same "$work/a" "$work/b" "and the same rollouts in step $s"
done
[ -d "$work/run/drafter/versions/1" ] || { cat "$work/log"; fail "idle workers published no drafter"; }
passed "idle workers trained a drafter and published it"
[ -z "$(find "$work/run/drafter" -name 'windows-*' -o -name 'grads.*')" ] || fail "buffers stay behind"
passed "what was recorded is gone with the run"
echo "$checks checks"
