#!/bin/sh
# Claims: the trainer, run again on recorded rollouts, reaches the recorded weights after every step;
# a changed key, or rewards given anew, show both curves and where the weights part; records that were
# changed, are missing or are cut off are refused in words; rollouts of another system are trained on;
# nothing in the run's directory is changed.
. tests/e2e/common.sh
tiny
run="$work/run"
run_tiny "$run" trainer.total_training_steps=3 trainer.compare_prompts=0 >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "a run of three steps"; }
awk -F'"actor/grad_norm":' '{split($2, a, ","); if (a[1] > 0) n++} END {exit n < 2}' "$run/metrics.jsonl" ||
    fail "the run has no gradients: this test would prove nothing"
list() { (cd "$run" && find . -type f -exec cksum {} + | sort -k 3); }
list >"$work/before"
only() { "$PACELINE" replay "$run" --train-only "$@" >"$work/out" 2>"$work/err"; }
says() { # says N PATTERN CLAIM: in so many lines
    [ "$(grep -cE "$2" "$work/out")" = "$1" ] || { cat "$work/out" "$work/err"; fail "$3: $1 lines of /$2/"; }
    passed "$3"
}

only || { cat "$work/out" "$work/err"; fail "train-only exits $?"; }
says 3 '^step .* weights equal$' "every step reaches the recorded hash"
says 1 'recorded hash after every step' "and the verdict says so"
only --threads 1 --isa ref || fail "train-only in plain C"
says 3 'weights equal$' "on one thread in plain C too"
only --step 3 || fail "train-only from a checkpoint"
says 1 'from step 3 on, from its checkpoint' "a later step begins at its checkpoint"
says 1 'weights equal$' "and reaches the recorded hash"

only actor.optim.lr=2e-3 || fail "a changed learning rate exits $?"
says 1 'others than the recorded ones from step 1 on' "another learning rate gives other weights"
says 4 '^  lr +0\.001 +0\.002 +\+0\.001$' "both curves and their difference are shown"
says 2 'off-policy: .* effective samples' "how far the policies are apart is said"
only actor.optim.lr=1e-3 || fail "the same learning rate exits $?"
says 1 'recorded hash after every step' "the value that it had changes nothing"
only --json actor.ppo_epochs=2 actor.use_kl_loss=true || fail "--json exits $?"
says 1 '"event":"end","verdict":"different"' "and the verdict is one too"
says 3 '^\{"step":[123],.*"actor/pg_loss":.*"recorded":\{"step":[123],.*\}\}$' "the curve is JSON lines"
for s in 1 2 3; do
    loss=$(sed -nE "s/^\{\"step\":$s,.*\"actor\/pg_loss\":([^,}]*).*/\1/p" "$run/metrics.jsonl" | head -n 1)
    grep -qF "\"actor/pg_loss\":$loss," "$work/out" || { cat "$work/out"; fail "recorded pg_loss $loss of step $s"; }
done

only --reward last_number || { cat "$work/err"; fail "--reward of the run exits $?"; }
says 3 'rewards that changed: 0 of 32' "the run's own verifier gives the recorded rewards"
says 1 'recorded hash after every step' "and the recorded weights"
only --reward exact || { cat "$work/err"; fail "--reward exact exits $?"; }
says 1 'others than the recorded ones' "another verifier gives other weights"
scorer='sed -u "s/.*\"id\":\([0-9]*\),\"data_source\":\"last_number\".*/{\"id\":\1,\"score\":0.5}/"'
only --reward "$scorer" || { cat "$work/err"; fail "--reward by a command exits $?"; }
says 4 'reward mean .* 0\.5 ' "a command scores them, and is told the data_source"

# Another system's names, plain text; the groups interleaved, no uid.
mkdir "$work/other"
for s in 1 2; do
    zstd -dcq "$run/rollouts/step_00000$s.jsonl.zst" |
        sed -E 's/"uid":[0-9]+,//; s/"tokens"/"response_ids"/; s/"logprobs"/"rollout_log_probs"/; s/"reward"/"score"/' |
        awk '{print (NR - 1) % 8 "\t" $0}' | sort -s -n -k 1,1 | cut -f 2- >"$work/other/rollout_$s.jsonl"
done
only --rollouts "$work/other" || { cat "$work/err"; fail "--rollouts exits $?"; }
says 2 'off-policy: 0 of [0-9]+ log-probs differ' "rollouts of another system are trained on, to the same policy"
says 2 '^step .* weights not recorded' "each file is a step"
sed -i -E 's/"rollout_log_probs":\[[^]]*\],//' "$work/other/rollout_1.jsonl"
only --rollouts "$work/other/rollout_1.jsonl" || { cat "$work/err"; fail "records without log-probs exit $?"; }
says 1 'have no log-probs' "log-probs that are missing are taken from the policy, which is said"
head -n 31 "$work/other/rollout_1.jsonl" >"$work/short.jsonl"
expect 65 'groups of one size are wanted' "groups of two sizes are refused" -- \
    "$PACELINE" replay "$run" --train-only --rollouts "$work/short.jsonl"

list >"$work/after"
same "$work/before" "$work/after" "the run's directory is as it was"

expect 78 "'rollout.n=4'.*rollouts are recorded" "a key that decides rollouts is refused" -- \
    "$PACELINE" replay "$run" --train-only rollout.n=4
expect 64 'no built-in verifier; known: exact' "a reward that is nothing" -- \
    "$PACELINE" replay "$run" --train-only --reward nonsense
"$PACELINE" tiny "$work/tiny2" --init-std 0.07 >/dev/null
expect 70 "tiny2' is not the model that the run began with" "another model is named" -- \
    "$PACELINE" replay "$run" --train-only model.path="$work/tiny2"
expect 64 'records up to step 3' "a step that was not trained is refused" -- \
    "$PACELINE" replay "$run" --train-only --step 4
change() { # change STEP SED: of a line of its records
    zstd -dcq "$run/rollouts/step_00000$1.jsonl.zst" | sed -E "$2" | zstd -q >"$work/changed.zst"
    cp "$work/changed.zst" "$work/bad/rollouts/step_00000$1.jsonl.zst"
}
cp -r "$run" "$work/bad"
change 2 '3s/"reward":[0-9]/"reward":7/'
expect 65 'sample 34: reward is 7' "a reward that was changed is named" -- \
    "$PACELINE" replay "$work/bad" --train-only
change 2 '3s/"tokens":\[[0-9]+/"tokens":[5/'
expect 65 'sample 34: token 0 is 5' "so is a token" -- "$PACELINE" replay "$work/bad" --train-only
change 2 32d
expect 65 'has 31 samples' "and a file that was cut off" -- "$PACELINE" replay "$work/bad" --train-only
rm -r "$work/bad/trace"
change 2 '3s/"logprobs":\[-[0-9.]+/"logprobs":[-6.25/'
expect 70 'uid 34 position [0-9]+ .*-6.25 there' "without a trace the log-probs tell" -- \
    "$PACELINE" replay "$work/bad" --train-only
rm "$work/bad/rollouts/step_000002.jsonl.zst"
expect 66 'rollouts of step 2.*No such file.*; --step 3 begins at' "a missing step is named" -- \
    "$PACELINE" replay "$work/bad" --train-only
change 2 ''
"$PACELINE" replay "$work/bad" --train-only >"$work/out" 2>&1 || { cat "$work/out"; fail "without a trace"; }
says 1 "trace +there is none: the weights' hashes cannot be compared" "a run without a trace is trained, and said to have none"
run_tiny "$run" trainer.total_training_steps=4 trainer.compare_prompts=0 actor.optim.lr=5e-3 >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "a fourth step with another learning rate"; }
only || { cat "$work/out" "$work/err"; fail "a run that went on with other keys exits $?"; }
says 4 'weights equal$' "each step is trained by the keys that it had"
only actor.optim.lr=5e-3 || { cat "$work/out" "$work/err"; fail "the keys of one sitting for all exit $?"; }
says 1 'others than the recorded ones from step 1 on' "one sitting's value for all is a change"
echo "$checks checks"
