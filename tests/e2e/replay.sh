#!/bin/sh
# Claims: a run's trace is generated again with 0 differing bits by any number of workers, threads,
# instruction set and drafter, from a checkpoint or by training on the recorded rollouts; one sample
# too, and without the rollouts' files; nothing in the run's directory changes; what was changed in
# them, or lies, is named with sample and position; what cannot be is a sentence.
. tests/e2e/common.sh
: "${PACELINE_FAULTY:?paceline of tests/faults}"
mkdir "$work/tmp"
TMPDIR=$work/tmp
export TMPDIR
tiny
run=$work/run

# Two sittings: one in this process, and one of two workers with a learned drafter, one of which is
# killed while it works.  No checkpoint between the last steps: the rollouts are trained on again.
quiet="trainer.save_freq=0 trainer.compare_prompts=0"
# shellcheck disable=SC2086 # words are wanted
run_tiny "$run" $quiet trainer.total_training_steps=2 >"$work/log" 2>&1 || { cat "$work/log"; fail "two steps in one process"; }
"$PACELINE" drafter warmup --model "$work/tiny" --data "$run" --out "$work/warm" --vocab 256 --steps 20 --hold-out uid \
    >"$work/log" 2>&1 || { cat "$work/log"; fail "a drafter"; }
pid_of() { head -n 1 "$run/$1.lock" 2>/dev/null; }
# shellcheck disable=SC2086
SLOW_MS=4 PACELINE=$PACELINE_FAULTY exec_tiny "$run" $quiet rollout.num_workers=2 speculative.method=auto \
    speculative.drafter.init="$work/warm" speculative.train.buffer_mb=8 >"$work/log" 2>&1 &
pid=$!
killed=0
while kill -0 $pid 2>/dev/null; do
    if [ $killed = 0 ] && [ -f "$run/rollouts/step_000003.jsonl.zst" ] && [ -n "$(pid_of worker-0)" ]; then
        kill -9 "$(pid_of worker-0)" 2>/dev/null && killed=1
    fi
    sleep 0.02
done
wait $pid || { cat "$work/log"; fail "two steps by two workers"; }
[ $killed = 1 ] || { cat "$work/log"; fail "no worker was killed"; }
rm -rf "$run/checkpoints/global_step_4" "$run/ledger"
mkdir -p "$run/drafter/versions"
[ -d "$run/drafter/versions/1" ] || cp -r "$work/warm" "$run/drafter/versions/1" # had it been published
last_version=$(find "$run/drafter/versions" -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -n | tail -n 1)

listing() { find "$run" -type f ! -name '*.lock' -exec cksum {} + | sort; }
listing >"$work/before"

# replay CLAIM ARG...: all steps, 0 differing bits; the JSON lines stay in $work/out
replay() {
    claim=$1
    shift
    "$PACELINE" replay "$run" --json "$@" >"$work/out" 2>"$work/err" || { cat "$work/out" "$work/err"; fail "$claim"; }
    [ "$(grep -c '"policy":"equal".*"differing_samples":0' "$work/out")" = 4 ] || { cat "$work/out"; fail "$claim"; }
    passed "$claim"
}
isas=""
for isa in ref avx2 avx512; do
    if echo '{"tokens":[1,2]}' | "$PACELINE" score --model "$work/tiny" --isa $isa --json >"$work/out" 2>&1; then
        isas="$isas $isa"
    fi
done
nth() { # nth N WORD...
    shift $(($1 + 1))
    echo "$1"
}
# Every pair of two of the four: 16 rows of workers and drafter, the others turned through.  Under
# sanitizers four of them.
all_workers="0 1 2 3" all_drafters="0 1 2 3"
[ -z "${PL_SANITIZED:-}" ] || all_workers="0 2" all_drafters="2 3"
n_isas=$(echo "$isas" | wc -w)
for w in $all_workers; do
    for d in $all_drafters; do
        # shellcheck disable=SC2086
        isa=$(nth $(((w + d) % n_isas)) $isas)
        who=$(nth "$d" none suffix 1 random)
        threads=$((1 + (w + d / 2) % 2))
        replay "workers $w, drafter $who, $isa, threads $threads" --workers "$w" --drafter "$who" --isa "$isa" \
            --threads $threads --controller fixed:4_2_8
        drafted=$(sed -n 's/.*"drafted":\([0-9]*\).*/\1/p' "$work/out" | awk '{s += $1} END {print s + 0}')
        case $who in
        none) [ "$drafted" = 0 ] || fail "nobody was to draft" ;;
        *) [ "$drafted" -gt 0 ] || fail "drafter $who was to draft" ;;
        esac
    done
done
replay "as the run did"
passed_now() { # passed_now PATTERN CLAIM ARG...: exit 0 and the pattern on stdout
    pattern=$1 claim=$2
    shift 2
    "$PACELINE" replay "$@" >"$work/out" 2>"$work/err" || { cat "$work/out" "$work/err"; fail "$claim"; }
    grep -qE "$pattern" "$work/out" || { cat "$work/out"; fail "$claim"; }
    passed "$claim"
}
passed_now 'global_step_2, 1 step trained' "one step, trained to from the nearest checkpoint" "$run" --step 4
passed_now 'replayed 32 samples, .* of step 4: 0 differing bits' "and its verdict" "$run" --step 4
for w in 0 2; do
    passed_now 'replayed 1 sample, .* of step 2: 0 differing bits' "one sample, workers $w" "$run" --sample 45 --workers $w
done
passed_now 'of steps 1, 3: 0 differing' "steps that want no training" "$run" --rollout-only
grep -q 'left out.*: steps 2, 4$' "$work/err" || { cat "$work/err"; fail "what was left out is to be said"; }
passed_now 'verdict":"equal"' "too many threads are capped" "$run" --step 1 --threads 999 --json
grep -q 'cores.*are taken' "$work/err" || { cat "$work/err"; fail "and that is to be said"; }
listing >"$work/after"
same "$work/before" "$work/after" "nothing in the run's directory has changed"
[ -z "$(ls "$work/tmp")" ] || fail "something is left in TMPDIR: $(ls "$work/tmp")"
passed "nothing is left behind"

# What cannot be replayed, in words.
expect 64 'sample 128 is not in the trace: it has samples 0 to 127' "an unknown sample" -- "$PACELINE" replay "$run" --sample 128
expect 64 'not in the trace' "and as JSON" -- "$PACELINE" replay "$run" --sample 128 --json
grep -q '"event":"end","verdict":"error","message":"sample 128' "$work/out" || fail "no verdict in JSON"
expect 64 'sample 3 is in step 1, not in step 2' "a sample of another step" -- "$PACELINE" replay "$run" --sample 3 --step 2
expect 64 'steps 1 to 4' "an unknown step" -- "$PACELINE" replay "$run" --step 5 --workers 2
expect 66 "there are .*$last_version" "an unknown version" -- "$PACELINE" replay "$run" --drafter 9999
expect 66 'checkpoint of step 3.*: 1, 3' "--rollout-only without a checkpoint" -- "$PACELINE" replay "$run" --step 4 --rollout-only
expect 66 'not the directory of a run' "no run" -- "$PACELINE" replay "$work/tmp"
expect 78 "'rollout.seed=7' decides bits" "a key that decides bits" -- "$PACELINE" replay "$run" speculative.max_rows=8 rollout.seed=7
mv "$work/tiny" "$work/moved"
expect 66 'model.path=PATH' "a model that moved" -- "$PACELINE" replay "$run"
replay "and where it is" model.path="$work/moved"
"$PACELINE" tiny "$work/tiny" --init-std 0.07 >/dev/null
expect 70 'not the model that the run began with' "another model in its place" -- "$PACELINE" replay "$run"
rm -rf "$work/tiny" && mv "$work/moved" "$work/tiny"

# Who generates lies: the first difference is named.
lie() { # lie MODE FROM PATTERN CLAIM ARG...
    mode=$1 from=$2 pattern=$3 claim=$4 code=0
    shift 4
    LIE=$mode LIE_FROM=$from "$PACELINE_FAULTY" replay "$run" "$@" >"$work/out" 2>"$work/err" || code=$?
    if [ $code != 70 ] || ! grep -qE "$pattern" "$work/err"; then
        cat "$work/err"
        fail "$claim: exit $code"
    fi
    passed "$claim"
}
lie redraw 6 'step 2: .* of 32 samples differ, the first is sample 37 at token' "another draw" --step 2
lie redraw 6 'step 2: .* of 32 samples differ' "another draw by workers" --step 2 --workers 2
lie logprob 1 'step 2: .* differ, the first is sample .* log-prob is .* recorded' "another log-prob" --step 2 --workers 1

# What was changed on disk.
f=$run/rollouts/step_000003.jsonl.zst
cp "$f" "$work/kept"
change() { # change SED_SCRIPT: one line of the rollouts of step 3
    zstd -dcq "$work/kept" | sed -E "$1" | zstd -q >"$f"
    ! cmp -s "$f" "$work/kept" || fail "the change did not take"
}
for way in "" "--step 4"; do
    change '5s/"tokens":\[[0-9]+/"tokens":[1/'
    # shellcheck disable=SC2086
    expect 65 'step_000003.*sample 68: token 0 is 1, in the trace' "a changed token ($way)" -- "$PACELINE" replay "$run" $way
done
change '6s/"logprobs":\[-[0-9]+/"logprobs":[-77/'
expect 65 'step_000003.*sample 69: log-probs of tokens 0 to' "a changed log-prob" -- "$PACELINE" replay "$run" --step 3
change '7s/"reward":[0-9.]+/"reward":0.625/'
expect 65 'step_000003.*sample 70: reward is 0.625' "a changed reward" -- "$PACELINE" replay "$run" --step 4
rm "$f"
passed_now 'of step 3: 0 differing' "without the rollouts' file: prompts of the data, log-probs by their hashes" "$run" --step 3
lie redraw 6 'the first is sample 69 at token' "and then too what differs is named" --step 3
lie logprob 1 'hash of up to 64 log-probs' "a log-prob too" --step 3 --workers 1
expect 66 'step_000003' "rollouts that training wants and are gone" -- "$PACELINE" replay "$run" --step 4
expect 66 'left out: 4; these need no training.*: 1, 3' "the others are replayed" -- "$PACELINE" replay "$run"
grep -q 'of steps 1, 2, 3: 0 differing' "$work/out" || { cat "$work/out"; fail "steps 1 to 3"; }
passed "and said"
cp "$work/kept" "$f"
mv "$run/drafter/versions" "$work/versions"
passed_now '0 differing' "without the drafter's versions" "$run" --step 1
mv "$work/versions" "$run/drafter/versions"
run_tiny "$work/other" rollout.seed=9 trainer.total_training_steps=2 trainer.compare_prompts=0 >"$work/log" 2>&1
# It goes on with other keys; then somebody edits its config.yaml.
run_tiny "$work/other" rollout.seed=9 trainer.total_training_steps=3 trainer.compare_prompts=0 actor.optim.lr=5e-3 \
    >"$work/log" 2>&1 || { cat "$work/log"; fail "a third step with another learning rate"; }
cp -r "$work/other" "$work/shorter"
run_tiny "$work/shorter" rollout.seed=9 trainer.compare_prompts=0 actor.optim.lr=5e-3 data.max_response_length=8 \
    actor.ppo_max_token_len=128 >"$work/log" 2>&1 || { cat "$work/log"; fail "a fourth step of shorter responses"; }
passed_now 'after step 3 .*max_response_length 8, was 24' "a run that went on with shorter responses" "$work/shorter"
grep -q 'of 4 steps, 1 to 4: 0 differing' "$work/out" || { cat "$work/out"; fail "each step by the lengths that it had"; }
mv "$work/other/checkpoints" "$work/others"
passed_now 'after step 2 .* other keys: actor.optim.lr 0.005, was 0.001' "a run that went on with other keys" "$work/other"
grep -q 'of 3 steps, 1 to 3: 0 differing' "$work/out" || { cat "$work/out"; fail "each step by the keys that it had"; }
sed -i 's/ lr: 0.005/ lr: 0.5/' "$work/other/config.yaml"
passed_now '0 differing' "an edited config.yaml decides nothing" "$work/other"
grep -q 'config.yaml. is not the one .*: actor.optim.lr 0.5, was 0.005' "$work/err" || { cat "$work/err"; fail "the edit is to be named"; }
mv "$run/checkpoints/global_step_2" "$work/global_step_2"
cp -r "$work/others/global_step_2" "$run/checkpoints/"
expect 70 "policy of step 2: hash .*global_step_2' is not this run" "another run's checkpoint" -- "$PACELINE" replay "$run" --step 4
: >"$run/checkpoints/global_step_2/optimizer.safetensors"
passed_now 'the initial model, 3 steps trained' "a damaged checkpoint costs steps, no bits" "$run" --step 4
t=$run/trace/000001.journal
cp "$t" "$work/trace"
printf 'X' | dd of="$t" bs=1 seek=$(($(wc -c <"$t") / 2)) conv=notrunc 2>/dev/null
expect 65 'trace' "a changed trace" -- "$PACELINE" replay "$run"
rm "$t"
expect 66 'trace' "no trace" -- "$PACELINE" replay "$run"
echo "$checks checks"
