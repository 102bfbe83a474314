#!/bin/sh
# Claims: a run's trace can be simulated as it was and with other workers; the same call says the
# same; what is not there is refused in words.
. tests/e2e/common.sh
tiny
run_tiny "$work/run" trainer.total_training_steps=2 >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "the run"; }

"$PACELINE" simulate "$work/run" >"$work/table" || fail "simulate"
grep -qE '^ +all +64 ' "$work/table" || { cat "$work/table"; fail "the sum of two steps of 32 samples"; }
passed "two steps, and their sum"
"$PACELINE" simulate "$work/run" --workers 100 --scale 20 --min-workers 1 --threshold 8 --json |
    sed 's/,"wall_s":[^}]*//' >"$work/a" || fail "100 workers"
"$PACELINE" simulate "$work/run" --workers 100 --scale 20 --min-workers 1 --threshold 8 --json |
    sed 's/,"wall_s":[^}]*//' >"$work/b" || fail "100 workers again"
same "$work/a" "$work/b" "the same call gives the same figures"
grep -q '"event":"sum","steps":2,"workers":100,"samples":1280,' "$work/a" || { cat "$work/a"; fail "100 workers"; }
passed "100 workers, twenty times the prompts"
"$PACELINE" simulate "$work/run" --cost-from "$work/run" --steps 2 --controller off --json >"$work/a" ||
    fail "one step by another run's costs"
[ "$(grep -c '"event":"step"' "$work/a")" = 1 ] || fail "--steps 2 is one step"
passed "one step, by the costs of another run"

expect 66 "nowhere" "a run that is not there" -- "$PACELINE" simulate "$work/nowhere"
"$PACELINE" simulate "$work/run" --acceptance 2 --pace 2 --slowdown 3 >"$work/table" || fail "factors"
for said in 'acceptance x 2' 'takes 2 times as long as recorded' 'and 3 times as long while' 'by what was asked for' ' recorded +ratio$'; do
    grep -qE "$said" "$work/table" || { cat "$work/table"; fail "nothing of '$said'"; }
done
passed "factors are told, and the recorded seconds stay"

expect 66 "the trace has steps 1 to 2" "steps of which only some are there" -- "$PACELINE" simulate "$work/run" --steps 2-9
expect 66 "no steps 7 to 9" "steps that are not there" -- "$PACELINE" simulate "$work/run" --steps 7-9
expect 64 "steps 'x'" "--steps that is no range" -- "$PACELINE" simulate "$work/run" --steps x
expect 64 "workers" "too many workers" -- "$PACELINE" simulate "$work/run" --workers 20000
echo "$checks checks"
