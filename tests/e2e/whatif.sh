#!/bin/sh
# Claims: from the trace of one run, replay --what-if tells what another tree, drafter or none would
# have drafted, verified and accepted, to the row: as a live run of it does; alone or among others,
# one step or all; the run is not touched; what cannot be asked is refused in words.
. tests/e2e/common.sh
tiny
short="trainer.total_training_steps=2 trainer.compare_prompts=0 data.val_files="
learned="speculative.method=auto speculative.drafter.init=random speculative.train.buffer_mb=8 speculative.train.gate_seconds=0
    speculative.train.gate_tokens=16 speculative.train.gate_samples=2 speculative.train.slice=1"
live() { # live DIR [key=value ...]
    # shellcheck disable=SC2086 # words are wanted
    run_tiny "$@" $short >"$work/log" 2>&1 || { cat "$work/log"; fail "a run for '$1'"; }
}
live "$work/a" speculative.controller=fixed:3_2_4
live "$work/b" speculative.controller=fixed:6_4_12
# shellcheck disable=SC2086
live "$work/trained" $learned speculative.controller=fixed:4_3_8
drafter=$work/trained/drafter/versions/1
[ -d "$drafter" ] || fail "no drafter was published"
live "$work/frozen" speculative.method=eagle speculative.drafter.init="$drafter" \
    speculative.train.enable_drafter_training=false speculative.controller=fixed:4_3_8

ask() { # ask RUN [argument ...]: JSON lines to $work/said
    run=$1
    shift
    "$PACELINE" replay "$run" --what-if --json "$@" >"$work/said" 2>"$work/err" ||
        { cat "$work/err" >&2; fail "replay --what-if $*"; }
}
# line NAME: what is counted of an alternative, without times
line() {
    grep -F "{\"alternative\":\"$1\"" "$work/said" |
        grep -oE '"(samples|tokens|acceptance_length|drafted_rows|verified_rows|verify_steps|rounds|suffix_share|learned_share)":[0-9.e+-]+'
}
number() { # number NAME KEY
    grep -F "{\"alternative\":\"$1\"" "$work/said" | sed -E "s/.*\"$2\":([0-9.e+-]+).*/\1/"
}
state() { find "$1" -type f -exec cksum {} + | sort; }

state "$work/a" >"$work/before"
for step in 0 2; do
    at=""
    [ $step = 0 ] || at="--step $step"
    # shellcheck disable=SC2086
    ask "$work/b" $at && line recorded >"$work/live_b"
    # shellcheck disable=SC2086
    ask "$work/frozen" $at && line recorded >"$work/live_frozen"
    [ "$(wc -l <"$work/live_b")" = 9 ] || { cat "$work/said"; fail "nine figures of a line"; }
    differs "$work/live_b" "$work/live_frozen" "the runs draft differently (step $step)"
    # shellcheck disable=SC2086
    ask "$work/a" $at controller=fixed:6_4_12 drafter=none \
        "drafter=$drafter,controller=fixed:4_3_8" drafter=suffix,controller=off
    line recorded >"$work/x" && line "as the run" >"$work/y"
    same "$work/x" "$work/y" "the run's own way, replayed, is what was recorded (step $step)"
    line controller=fixed:6_4_12 >"$work/x"
    same "$work/live_b" "$work/x" "another tree is what a live run of it does (step $step)"
    line "drafter=$drafter,controller=fixed:4_3_8" >"$work/x"
    same "$work/live_frozen" "$work/x" "so is a learned drafter (step $step)"
    line drafter=none >"$work/x" && line drafter=suffix,controller=off >"$work/y"
    same "$work/x" "$work/y" "no drafter is no drafting (step $step)"
    [ "$(number drafter=none acceptance_length)" = 1 ] || fail "acceptance length without drafting"
    [ "$(number drafter=none verified_rows)" = \
        $(($(number drafter=none tokens) - $(number drafter=none samples))) ] ||
        fail "a row for each token but the first"
done
ask "$work/a" controller=fixed:6_4_12
line controller=fixed:6_4_12 >"$work/x"
ask "$work/b" && line recorded >"$work/y"
same "$work/x" "$work/y" "an alternative alone says the same"
ask "$work/trained"
line recorded >"$work/x" && line "as the run" >"$work/z"
same "$work/x" "$work/z" "a run whose drafter was trained meanwhile drafts with the version of each step"
ask "$work/trained" controller=fixed:6_4_12,drafter=suffix drafter=random drafter=1,max_rows=6
line controller=fixed:6_4_12,drafter=suffix >"$work/x"
same "$work/x" "$work/y" "from whatever run the text is"
[ "$(number drafter=1,max_rows=6 tokens)" = "$(number recorded tokens)" ] || fail "a version of the run"
"$PACELINE" replay "$work/a" --what-if controller=fixed:6_4_12 >"$work/table" 2>&1
grep -qE '^controller=fixed:6_4_12 +\|#' "$work/table" || { cat "$work/table"; fail "no chart"; }
passed "a table and a chart"
state "$work/a" >"$work/after"
same "$work/before" "$work/after" "the run is not touched"

# Step 2 once more, by a run whose engines began anew and know nothing of the same prompts in step 1:
# what counts is what it did last.
head -n 4 tests/data/first_digit.jsonl >"$work/four.jsonl"
again="speculative.controller=fixed:3_2_4 data.train_files=$work/four.jsonl trainer.save_freq=1"
# shellcheck disable=SC2086
live "$work/r" $again
ask "$work/r" --step 2
line recorded >"$work/x" && line "as the run" >"$work/y"
same "$work/x" "$work/y" "a step with prompts that are known"
: >"$work/r/checkpoints/global_step_2/optimizer.safetensors"
# shellcheck disable=SC2086
live "$work/r" $again
"$PACELINE" trace verify "$work/r" | grep -q '(1 repeated)' || fail "no step was trained again"
ask "$work/r" --step 2
line recorded >"$work/z" && line "as the run" >"$work/y"
same "$work/z" "$work/y" "a step that was trained again counts as it was done last"
differs "$work/x" "$work/z" "which was another way"

# Workers: each has its own samples, and nothing is lost.
live "$work/w" rollout.num_workers=2 speculative.controller=fixed:3_2_4
ask "$work/w" controller=fixed:6_4_12
[ "$(number controller=fixed:6_4_12 tokens)" = "$(number recorded tokens)" ] || fail "tokens of workers"
[ "$(number controller=fixed:6_4_12 drafted_rows)" -gt "$(number "as the run" drafted_rows)" ] ||
    fail "a larger tree drafts more"
passed "a run of two workers"

replay() { "$PACELINE" replay "$work/a" --what-if "$@"; }
expect 66 'versions/7.* is not there' "a version that is not kept" -- replay drafter=7
expect 64 'none of drafter' "an unknown word" -- replay tree=3
expect 64 'not key=value' "a word that is no alternative" -- replay suffix
expect 78 'controller' "a controller that is none" -- replay controller=fixed:0_0_0
expect 78 'only drafting' "what changes the text" -- replay drafter=none,rollout.temperature=0.5
expect 78 'only drafting' "for all of them" -- replay rollout.temperature=0.5
expect 66 'no step 9' "a step that was not" -- replay --step 9
mv "$work/a/trace" "$work/gone"
expect 66 'trace' "a run without a trace" -- replay drafter=none
echo "$checks checks"
