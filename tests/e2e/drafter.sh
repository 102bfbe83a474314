#!/bin/sh
# Claims: a drafter is warmed up from recorded rollouts or from its own, and learns; a warm-up that is
# stopped and continued has the bits of one that was not; what the target draws anew is what was
# recorded; export and import keep the drafter; wrong input is a sentence, and nothing starts from
# random weights without saying so.
. tests/e2e/common.sh
tiny
i=0
while [ $i -lt 24 ]; do
    echo "{\"prompt\":\"count $i and $((i * 7))\"}"
    i=$((i + 1))
done >"$work/prompts"
"$PACELINE" generate --model "$work/tiny" --prompts "$work/prompts" --n 2 --max-tokens 80 --ignore-eos --seed 3 \
    --json >"$work/data.jsonl" 2>"$work/log" || { cat "$work/log"; fail "rollouts to learn from"; }
warmup() { # warmup DIR [options]
    (exec_warmup "$@")
}
exec_warmup() {
    dir=$1
    shift
    exec "$PACELINE" drafter warmup --model "$work/tiny" --data "$work/data.jsonl" --noise-seed 3 --out "$dir" \
        --window 64 --vocab 256 --schedule constant --eval-every 1000 --eval-tokens 512 "$@"
}

warmup "$work/whole" --steps 50 --json >"$work/out" 2>"$work/log" || { cat "$work/log"; fail "a warm-up"; }
grep -q 'random start, seed 0' "$work/log" || fail "a random start says so, with its seed"
grep -q '100.0 % of the recorded tokens' "$work/log" || { cat "$work/log"; fail "tokens are drawn as recorded"; }
passed "the target draws again what was recorded"
first=$(sed -n '1s/.*"loss":\[\([0-9.]*\).*/\1/p' "$work/out")
last=$(sed -n '$s/.*"loss":\[\([0-9.]*\).*/\1/p' "$work/out")
awk "BEGIN {exit !($last < 0.995 * $first)}" || { cat "$work/out"; fail "held-out loss $first to $last"; }
passed "held-out loss falls from $first to $last"

warmup "$work/parts" --steps 41 >"$work/log" 2>&1
warmup "$work/parts" --steps 50 --resume >"$work/log" 2>&1 || { cat "$work/log"; fail "a continued warm-up"; }
grep -q 'after step 41' "$work/log" || fail "the warm-up was not continued"
same "$work/whole/model.safetensors" "$work/parts/model.safetensors" "a continued warm-up has the same weights"
same "$work/whole/trainer.state" "$work/parts/trainer.state" "and the same moments"
warmup "$work/seed" --steps 50 --seed 1 >"$work/log" 2>&1
differs "$work/whole/model.safetensors" "$work/seed/model.safetensors" "another seed, another drafter"
expect 64 "other options" "a resume with another window" -- warmup "$work/parts" --resume --steps 60 --depth 3
expect 64 "other options" "a resume at another rate" -- warmup "$work/parts" --resume --steps 60 --lr 1e-4
head -n 40 "$work/data.jsonl" >"$work/less.jsonl"
expect 64 "other data" "a resume on other data" -- warmup "$work/parts" --resume --steps 60 --data "$work/less.jsonl"
expect 64 "is there already" "a warm-up over another" -- warmup "$work/whole" --steps 60
"$PACELINE" tiny "$work/twin" --seed 9 >"$work/log" 2>&1 || { cat "$work/log"; fail "a model of the same shape"; }
expect 64 "another model" "a resume with a model of the same shape" -- "$PACELINE" drafter warmup --model "$work/twin" \
    --data "$work/data.jsonl" --noise-seed 3 --out "$work/parts" --resume --steps 60
expect 66 "warmup.json" "a resume of nothing" -- warmup "$work/none" --resume

# Little memory: features are made anew, part by part, and the place is found again.
warmup "$work/small" --steps 70 --memory-mb 1 >"$work/log" 2>&1 || { cat "$work/log"; fail "a warm-up in parts"; }
grep -q 'more than --memory-mb' "$work/log" || { cat "$work/log"; fail "features that do not fit"; }
warmup "$work/small2" --steps 61 --memory-mb 1 >"$work/log" 2>&1
warmup "$work/small2" --steps 70 --memory-mb 1 --resume >"$work/log" 2>&1
same "$work/small/model.safetensors" "$work/small2/model.safetensors" "in parts of the memory a resume is exact too"

# A signal.
exec_warmup "$work/signal" --tokens 100000000 >"$work/log" 2>&1 &
pid=$!
tries=0
while ! grep -q '^step 20' "$work/log" && [ $tries -lt 3000 ]; do
    kill -0 $pid 2>/dev/null || break
    tries=$((tries + 1))
    sleep 0.02
done
kill -TERM $pid
code=0
wait $pid || code=$?
[ $code = 75 ] || { cat "$work/log"; fail "a stopped warm-up: exit $code"; }
[ -f "$work/signal/warmup.json" ] || fail "a stopped warm-up is saved"
passed "a signal ends a warm-up with what it has learned"

eval_of() {
    "$PACELINE" drafter eval --model "$work/tiny" --drafter "$1" --data "$work/data.jsonl" --noise-seed 3 --json --window 64
}
"$PACELINE" drafter export --model "$work/tiny" --drafter "$work/whole" --out "$work/exported" >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "export"; }
"$PACELINE" drafter import --model "$work/tiny" --drafter "$work/exported" --out "$work/imported" >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "import"; }
same "$work/whole/model.safetensors" "$work/imported/model.safetensors" "export and import keep every weight"
eval_of "$work/whole" >"$work/a" 2>"$work/log" && eval_of "$work/imported" >"$work/b" 2>"$work/log"
same "$work/a" "$work/b" "and every figure"
for budget in 1_1_2 4_2_8 6_4_16; do
    grep -qE "\"budget\":\"$budget\",\"acceptance_length\":[1-9]\.[0-9]+,\"tokens\":[1-9]" "$work/a" || { cat "$work/a"; fail "$budget"; }
done
passed "whole trees of three budgets are replayed"
mkdir "$work/run" "$work/run/rollouts"
zstd -q <"$work/data.jsonl" >"$work/run/rollouts/step_000001.jsonl.zst"
"$PACELINE" drafter eval --model "$work/tiny" --drafter "$work/whole" --data "$work/run" --noise-seed 3 --json \
    --window 64 >"$work/b" 2>"$work/log" || { cat "$work/log"; fail "the rollouts of a run"; }
same "$work/a" "$work/b" "a run's compressed rollouts are read"

expect 66 "is not there: paceline drafter warmup" "no such drafter" -- eval_of "$work/none"
expect 64 "is no list of STEPS_TOPK_VERIFY" "a budget that is none" -- "$PACELINE" drafter eval --model "$work/tiny" \
    --drafter "$work/whole" --data "$work/data.jsonl" --budget 6_4
warmup "$work/decayed" --steps 50 --depth-decay 0.8 >"$work/log" 2>&1 || { cat "$work/log"; fail "depths with a decay"; }
differs "$work/whole/model.safetensors" "$work/decayed/model.safetensors" "depths are weighed as they are measured"
expect 64 "drafter is missing" "no drafter named" -- "$PACELINE" drafter eval --model "$work/tiny" --data "$work/data.jsonl"
"$PACELINE" tiny "$work/other" --hidden 96 >"$work/log" 2>&1 || { cat "$work/log"; fail "another model"; }
expect 65 "whole" "a drafter of another target" -- \
    "$PACELINE" drafter eval --model "$work/other" --drafter "$work/whole" --data "$work/data.jsonl"
expect 64 "none of prompt, uid, all" "an unknown split" -- warmup "$work/x" --hold-out every
expect 64 "out of range" "too little memory" -- warmup "$work/x" --memory-mb 0
expect 66 "cannot be written, name another" "an --out that cannot be made" -- warmup /proc/none/x
[ ! -s "$work/out" ] || fail "it was trained before that was said"
expect 66 "none.jsonl" "no such data" -- warmup "$work/x" --data "$work/none.jsonl"
mkdir "$work/empty"
expect 66 "holds no .jsonl" "a directory without records" -- warmup "$work/x" --data "$work/empty"
echo '{"uid":1,"prompt_ids":[1,2],"tokens":[3,4000]}' >"$work/bad.jsonl"
expect 65 "bad.jsonl:1: id 4000 .*another model" "rollouts of another model" -- warmup "$work/x" --data "$work/bad.jsonl"
echo '{"uid":1,"prompt_ids":[1,2]}' >"$work/bad.jsonl"
expect 65 "bad.jsonl:1: not a rollout record" "a line that is no record" -- warmup "$work/x" --data "$work/bad.jsonl"
head -c 300 "$work/run/rollouts/step_000001.jsonl.zst" >"$work/bad.jsonl.zst"
expect 65 "middle of a frame" "a cut zstd file" -- warmup "$work/x" --data "$work/bad.jsonl.zst"
head -n 1 "$work/data.jsonl" >"$work/bad.jsonl"
expect 64 "held out" "data of one prompt" -- warmup "$work/x" --data "$work/bad.jsonl"
[ ! -e "$work/x" ] || fail "a refused warm-up left a drafter"
cp -r "$work/whole" "$work/cut"
head -c 5000 "$work/whole/model.safetensors" >"$work/cut/model.safetensors"
expect 65 "cut" "a drafter that is cut" -- eval_of "$work/cut"

# Without data: its own rollouts first, which stay; the configuration names no model, --model does.
sed 's/max_response_length: .*/max_response_length: 64/' configs/arms.yaml >"$work/own.yaml"
"$PACELINE" drafter warmup --model "$work/tiny" --config "$work/own.yaml" --noise-seed 5 --temperature 0.9 \
    --out "$work/own" --tokens 6000 --window 64 --vocab 256 --json \
    >"$work/out" 2>"$work/log" || { cat "$work/log"; fail "a warm-up from its own rollouts"; }
[ -s "$work/own.rollouts.jsonl" ] && [ -s "$work/own/model.safetensors" ] || fail "its files"
grep -q '100.0 % of the recorded tokens .* at seed 5, temperature 0.9' "$work/log" || { cat "$work/log"; fail "its own noise"; }
passed "without data the model's own rollouts are made, and used"
expect 64 "own.rollouts.jsonl. is there already" "rollouts are not made twice unasked" -- \
    "$PACELINE" drafter warmup --model "$work/tiny" --out "$work/own" --resume
echo "drafter: $checks checks passed"
