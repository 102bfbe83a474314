#!/bin/sh
# Claims: a run writes a trace that is complete when it is; a run with workers writes the same
# samples; a run that goes on from an older checkpoint says the same steps again; harm is found, and
# the ledger knows what was cut; what is exported is what was rolled out.
. tests/e2e/common.sh
trace() { "$PACELINE" trace "$@"; }
# cut FILE STEPS: leave superblock, RUN and so many steps (a block each)
cut_blocks() {
    at=64
    for _ in $(seq 0 "$2"); do
        at=$((at + 60 + $(od -A n -t u4 -j $((at + 4)) -N 4 "$1")))
    done
    truncate -s $at "$1"
}
tiny
run_tiny "$work/a" >"$work/log" 2>&1 || { cat "$work/log"; fail "a run of four steps"; }
trace verify "$work/a" >"$work/out"
grep -q ': complete: 4 steps; 1 sitting, 4 steps (0 repeated), 128 samples, ' "$work/out" || fail "$(cat "$work/out")"
grep -q '; no ledger (a run in one process), compared with the newest checkpoint$' "$work/out" || fail "$(cat "$work/out")"
passed "a finished run has a complete trace"
trace stat "$work/a" | awk '$1 == "all" {n++; if ($4 > 40 || $5 > 3) n = 9} END {exit n != 1}' || fail "sizes"
[ "$(trace stat --json "$work/a" | grep -c '"acceptance_length"')" = 4 ] || fail "a figure a step"
[ "$(trace cat "$work/a" | grep -c '  SAMPLE uid ')" = 128 ] || fail "a line a sample"
[ "$(trace cat --json --sample 40 "$work/a" | grep -c '"record":"sample","uid":40,"step":2,')" = 1 ] || fail "one sample"
passed "stat and cat show it"
expect 66 'no step 9: the trace has steps 1 to 4' "cat of no such step" -- "$PACELINE" trace cat "$work/a" --step 9
expect 66 'no sample 9999: the trace has samples 0 to 127' "export of no such sample" -- "$PACELINE" trace export "$work/a" --sample 9999
expect 66 'sample 40 is not of step 1' "nor of another step" -- "$PACELINE" trace cat "$work/a" --step 1 --sample 40
expect 64 'step' "diff knows no --step" -- "$PACELINE" trace diff "$work/a" "$work/a" --step 3

wanted='s/.*"uid":([0-9]+),.*"tokens":(\[[0-9,]*\]).*"reward":([^,]*),.*/\1 \2 \3/p'
for s in 1 2 3 4; do zstd -dcq "$work/a/rollouts/step_00000$s.jsonl.zst"; done | sed -nE "$wanted" >"$work/x"
trace export "$work/a" | sed -nE "$wanted" >"$work/y"
[ "$(grep -c . "$work/y")" = 128 ] || fail "a line a sample in the export"
same "$work/x" "$work/y" "the export has the uids, tokens and rewards of rollouts/"

run_tiny "$work/b" rollout.num_workers=2 >"$work/log" 2>&1 || { cat "$work/log"; fail "with workers"; }
trace diff "$work/a" "$work/b" >"$work/out" || fail "$(cat "$work/out")"
grep -q '^the same: 4 steps' "$work/out" || fail "$(cat "$work/out")"
passed "with workers the samples are the same"
run_tiny "$work/c" rollout.seed=5 trainer.total_training_steps=1 >"$work/log" 2>&1 || { cat "$work/log"; fail "seed 5"; }
code=0
trace diff "$work/a" "$work/c" >"$work/out" || code=$?
[ $code = 1 ] && grep -qE '^differ at step 1, uid 0: (token [0-9]+ is|log-probs of tokens|A has)' "$work/out" || fail "exit $code: $(cat "$work/out")"
passed "diff names the first sample that differs"

# Steps 3 and 4 once more, from the checkpoint of step 2.
: >"$work/a/checkpoints/global_step_4/optimizer.safetensors"
run_tiny "$work/a" >"$work/log" 2>&1 || { cat "$work/log"; fail "a run that goes on"; }
trace verify "$work/a" >"$work/out"
grep -q ': complete: 4 steps; 2 sittings, 6 steps (2 repeated), 192 samples, ' "$work/out" || fail "$(cat "$work/out")"
trace diff "$work/a" "$work/b" >"$work/out" || fail "$(cat "$work/out")"
trace export "$work/a" | sed -nE "$wanted" >"$work/y"
same "$work/x" "$work/y" "steps that are trained again stand twice and count once"

cp -r "$work/b" "$work/harmed"
file=$work/harmed/trace/000001.journal
cut_blocks "$file" 2
code=0
trace verify "$work/harmed" >"$work/out" || code=$?
[ $code = 65 ] && grep -q 'damaged: cut after step 2, the ledger knows step 4.*; compared with the ledger$' "$work/out" ||
    fail "exit $code: $(cat "$work/out")"
code=0
trace verify "$work/harmed/trace" >"$work/out" || code=$?
[ $code = 65 ] && grep -q 'the ledger knows step 4' "$work/out" || fail "RUN/trace: exit $code: $(cat "$work/out")"
for reader in "trace stat" simulate; do
    # shellcheck disable=SC2086 # words are wanted
    "$PACELINE" $reader "$work/harmed" >/dev/null 2>"$work/err" || fail "$reader of a cut trace"
    grep -q 'cut after step 2, the ledger knows step 4' "$work/err" || fail "$reader says nothing of the cut"
done
trace verify "$file" >"$work/out" || fail "a file alone: $(cat "$work/out")"
grep -q 'open at step 2' "$work/out" || fail "a file alone: $(cat "$work/out")"
cp "$work/b/trace/000001.journal" "$file"
truncate -s -3 "$file"
trace verify "$work/harmed" | grep -q 'open at step 4; .* bytes of block 5 at byte .* are torn' || fail "a torn end"
cp "$work/b/trace/000001.journal" "$file"
printf '\377' | dd of="$file" bs=1 seek=3000 conv=notrunc 2>/dev/null
code=0
trace verify "$work/harmed" >"$work/out" || code=$?
[ $code = 65 ] && grep -qE ': damaged at block 1, byte [0-9]+: its CRC-32C is wrong and it is not the last; ' "$work/out" ||
    fail "exit $code: $(cat "$work/out")"
: >"$work/nothing"
trace verify "$work/nothing" | grep -q ': empty; 0 sittings' || fail "a file without a byte"
passed "what is cut, torn and changed is told apart"
expect 65 'block 1 at byte [0-9]+ is damaged' "a damaged trace is not continued" -- \
    run_tiny "$work/harmed" rollout.num_workers=0 trainer.total_training_steps=5
# A ledger that cannot be asked: no clean verdict, whoever looks.
unasked() { # unasked REASON
    code=0
    trace verify "$work/harmed" >"$work/out" || code=$?
    [ $code = 74 ] && grep -q ": complete: 4 steps.*; not all of the ledger could be compared: $1" "$work/out" ||
        fail "exit $code: $(cat "$work/out")"
}
cp "$work/b/trace/000001.journal" "$file"
trace verify "$work/harmed" | grep -q ': complete: 4 steps.*; compared with the ledger$' || fail "a whole run"
ledger=$work/harmed/ledger/000001.journal
truncate -s 400 "$ledger"
unasked 'it ends at step 0, the trace at step 4'
: >"$ledger"
unasked 'it is empty'
rm "$ledger"
unasked 'it is not there'
ln -s 000001.journal "$ledger"
unasked 'Too many levels'
passed "a ledger that is cut, gone or unreadable is said"
expect 66 'has no trace' "no trace" -- "$PACELINE" trace stat "$work"
expect 64 'trace diff wants two' "one trace for diff" -- "$PACELINE" trace diff "$work/a"
echo "$checks checks"
