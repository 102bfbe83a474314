#!/bin/sh
# Claims: a learned drafter, frozen, trained in a slice or trained by idle workers, changes nothing of
# a run but its time: same weights, same rollouts; it is trained, published and put into use; what is
# wrong with it is a sentence; a run that was killed goes on with the state of the training.
. tests/e2e/common.sh
tiny
run_tiny "$work/base" >"$work/log" 2>&1 || { cat "$work/log"; fail "the run without"; }
like_base() { # like_base DIR CLAIM
    same "$(policy "$work/base" 4)" "$(policy "$1" 4)" "$2: the same weights"
    for s in 1 2 3 4; do
        rollouts "$work/base" $s >"$work/a" && rollouts "$1" $s >"$work/b"
        same "$work/a" "$work/b" "$2: the same rollouts in step $s"
    done
}
# Gates are passed by little evidence here: versions are to change often.
learned="speculative.method=auto speculative.drafter.init=random speculative.train.buffer_mb=8 speculative.train.gate_seconds=0
    speculative.train.gate_tokens=16 speculative.train.gate_samples=2 speculative.train.slice=1"

# shellcheck disable=SC2086 # words are wanted
for n in 0 1 2 3; do
    run_tiny "$work/w$n" rollout.num_workers=$n $learned >"$work/log" 2>&1 || { cat "$work/log"; fail "$n workers"; }
    like_base "$work/w$n" "a learned drafter, $n workers"
done
[ -f "$work/w0/drafter/state" ] || fail "nothing was trained in the slice"
sum() { # sum DIR NAME: a figure of every step
    sed -n "s|.*\"$2\":\([0-9.]*\).*|\1|p" "$1/metrics.jsonl" | awk '{s += $1} END {print s + 0}'
}
cp -r "$work/w0" "$work/slice"
n=4 # a slice is time: how much is trained in it is the machine's
while [ ! -d "$work/slice/drafter/versions/1" ] && [ $n -lt 64 ]; do
    n=$((n + 4))
    # shellcheck disable=SC2086
    run_tiny "$work/slice" $learned trainer.total_training_steps=$n >"$work/log" 2>&1 || { cat "$work/log"; fail "step $n"; }
done
steps=$(sum "$work/slice" drafter/optimizer_steps)
[ "$steps" -gt 0 ] || fail "no optimizer step in the metrics"
passed "the slice trains the drafter: $steps steps"
[ -d "$work/slice/drafter/versions/1" ] || fail "no version passed the gate"
passed "and publishes it"
[ "$(sum "$work/slice" drafter/swaps)" -gt 0 ] || fail "a version that is published is put into use"
passed "and puts it into use"

[ $n -eq 4 ] || grep -q "newest learned drafter" "$work/log" || { cat "$work/log"; fail "the table at the end has the learned drafter"; }
# shellcheck disable=SC2086
run_tiny "$work/none" $learned speculative.train.gate_tokens=1000000 >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "a run that publishes nothing"; }
if grep -q "newest learned drafter" "$work/log" || ! grep -q "no version has passed the gate yet" "$work/log"; then
    cat "$work/log"
    fail "what never drafted is compared"
fi
passed "a learned drafter that never served is not in the table at the end"

# Workers read it by a thread, and take it at a later round's end.  In one run, as who begins anew reads
# what is there; how much is trained before its end is the machine's.
put=0
for n in 16 32 64; do
    [ "$put" -gt 0 ] && break
    rm -rf "$work/put"
    # shellcheck disable=SC2086
    run_tiny "$work/put" rollout.num_workers=2 $learned speculative.controller=fixed:2_2_4 \
        data.max_response_length=400 trainer.total_training_steps=$n >"$work/log" 2>&1 ||
        { cat "$work/log"; fail "workers that publish, $n steps"; }
    put=$(sum "$work/put" rollout/spec_num_draft_learned)
done
[ "$put" -gt 0 ] || fail "a version that a worker publishes is put into use"
passed "a version that a worker publishes is put into use"

# The mapped buffers are in the plan: 64 MiB more for each of two workers.
planned() {
    # shellcheck disable=SC2086
    run_tiny "$work/plan" rollout.num_workers=2 $learned speculative.train.buffer_mb="$1" --dry-run 2>&1 |
        sed -n 's/^ *rollout workers *\([0-9]*\) MB.*/\1/p'
}
more=$(($(planned 72) - $(planned 8)))
[ $more -ge 133 ] && [ $more -le 135 ] || fail "the plan counts the buffers: $more MB more"
passed "the plan counts the buffers"

# From a directory, frozen.
for n in 0 2; do
    run_tiny "$work/frozen$n" rollout.num_workers=$n speculative.method=eagle speculative.controller=fixed:2_2_4 \
        speculative.drafter.init="$work/slice/drafter/versions/1" speculative.train.enable_drafter_training=false \
        >"$work/log" 2>&1 || { cat "$work/log"; fail "a frozen drafter, $n workers"; }
    like_base "$work/frozen$n" "a frozen drafter, $n workers"
    [ ! -d "$work/frozen$n/drafter" ] || fail "a frozen drafter is not trained"
    [ "$(sum "$work/frozen$n" rollout/spec_num_draft_learned)" -gt 0 ] || fail "a frozen drafter drafts"
done
for n in 0 2; do
    run_tiny "$work/cold$n" rollout.num_workers=$n speculative.method=eagle speculative.drafter.init=random \
        speculative.controller=fixed:2_2_4 trainer.total_training_steps=2 >"$work/log" 2>&1 ||
        { cat "$work/log"; fail "a cold start, $n workers"; }
    [ "$(sum "$work/cold$n" rollout/spec_num_draft_learned)" = 0 ] || fail "nothing drafts before it passed the gate"
    passed "nothing drafts before it passed the gate, $n workers"
done

# A ledger that is new counts sessions from 1: who owned the training by another ledger owns nothing.
mkdir "$work/again" && cp -r "$work/slice/lock" "$work/slice/drafter" "$work/again/"
printf '\377' | dd of="$work/again/drafter/state" bs=1 seek=1031 conv=notrunc 2>/dev/null # owner, highest byte
# shellcheck disable=SC2086
run_tiny "$work/again" rollout.num_workers=2 $learned >"$work/log" 2>&1 || { cat "$work/log"; fail "a drafter of another ledger"; }
like_base "$work/again" "a drafter of another ledger"
[ "$(od -An -tu1 -j1031 -N1 "$work/again/drafter/state" | tr -d ' ')" = 0 ] || fail "a new ledger frees the training"
passed "a new ledger frees the training"

# What is wrong with a drafter's files costs the drafter, not the run.
mkdir "$work/w0/drafter/versions/99" && echo x >"$work/w0/drafter/windows-local"
rm -rf "$work/w2/drafter" && echo x >"$work/w2/drafter"
for n in 0 2; do
    # shellcheck disable=SC2086
    run_tiny "$work/w$n" rollout.num_workers=$n $learned trainer.total_training_steps=5 >"$work/log" 2>&1 ||
        { cat "$work/log"; fail "a run whose drafter's files are damaged, $n workers"; }
    grep -qE 'passed over|no drafter is trained' "$work/log" || { cat "$work/log"; fail "and says so"; }
done
same "$(policy "$work/w0" 5)" "$(policy "$work/w2" 5)" "damaged drafter files, or none can be written: the same weights"

# What is wrong is said, and nothing starts from random weights by itself.
quiet="trainer.val_before_train=false"
expect 78 'drafter.init' "method eagle without a drafter" -- run_tiny "$work/x" speculative.method=eagle speculative.drafter.init= $quiet
for n in 0 2; do
    for train in true false; do
        # shellcheck disable=SC2086
        expect 66 'drafter.init' "a drafter that is not there, $n workers, training $train" -- run_tiny "$work/x" \
            speculative.method=auto speculative.drafter.init="$work/none" rollout.num_workers=$n \
            speculative.train.enable_drafter_training=$train $quiet
    done
done
"$PACELINE" tiny "$work/other" --init-std 0.08 --hidden 96 >/dev/null
expect 65 'drafter.init.*hidden' "a drafter of another model" -- run_tiny "$work/x" speculative.method=auto \
    speculative.drafter.init="$work/slice/drafter/versions/1" model.path="$work/other" $quiet
echo "$checks checks"
