#!/bin/sh
# Claims: speculation on or off, threads, backend, batch and controller change no token, no log-prob
# and no weight of a run; generate gives the same bytes; score gives the log-probs of generate.
. tests/e2e/common.sh
tiny
run_tiny "$work/base" trainer.threads=2 >"$work/log" 2>&1 || { cat "$work/log"; fail "the run"; }
i=0
for how in speculative.enable=false trainer.threads=1 trainer.isa=ref trainer.isa=avx2 rollout.max_num_seqs=3 \
    speculative.controller=fixed:6_4_16 actor.activations=recompute; do
    i=$((i + 1))
    run_tiny "$work/r$i" trainer.threads=2 $how >"$work/log" 2>&1 || {
        grep -q 'does not have it' "$work/log" && { echo "skipped $how: not on this CPU"; continue; }
        cat "$work/log"; fail "$how"; }
    same "$(policy "$work/base" 4)" "$(policy "$work/r$i" 4)" "$how: the same weights"
    for s in 1 4; do
        rollouts "$work/base" $s >"$work/a" && rollouts "$work/r$i" $s >"$work/b"
        same "$work/a" "$work/b" "$how: the same rollouts in step $s"
    done
done
run_tiny "$work/seed" rollout.seed=1 >"$work/log" 2>&1
differs "$(policy "$work/base" 4)" "$(policy "$work/seed" 4)" "another seed: other weights"

# Micro-batches filled to the last row: 64 sequences a group, of 33 tokens that take 32 rows each.
n=$("$PACELINE" tokenize --model "$work/tiny" --chat --text "Say 0" | tr -cd ',' | wc -c)
run_tiny "$work/full" rollout.n=64 rollout.ignore_eos=true data.max_response_length=$((32 - n)) \
    actor.ppo_max_token_len=1024 trainer.total_training_steps=1 >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "a full micro-batch"; }
passed "a micro-batch filled to its last row"

printf '{"prompt":"one two three"}\n{"prompt":[{"role":"user","content":"4 5 6 4 5 6"}]}\n"aaaa"\n' >"$work/p"
gen() { "$PACELINE" generate --model "$work/tiny" --prompts "$work/p" --n 3 --max-tokens 40 --seed 7 --json "$@"; }
for t in 0 0.7 1; do
    gen --temperature $t >"$work/a"
    [ "$(wc -l <"$work/a")" = 9 ] || fail "nine samples"
    gen --temperature $t --no-speculative --batch 2 --threads 1 >"$work/b"
    same "$work/a" "$work/b" "generate at T = $t: speculation, batch and threads change no byte"
done
gen --top-k 5 --top-p 0.9 >"$work/a"
gen --top-k 5 --top-p 0.9 --no-speculative --isa ref >"$work/b"
same "$work/a" "$work/b" "generate with filters: the same bytes without AVX"

# score of prompt + response = log-probs of generate, as text
gen >"$work/a"
sed -E 's/.*"prompt_ids":\[([^]]*)\],"tokens":\[([^]]*)\].*/{"tokens":[\1,\2]}/' "$work/a" |
    "$PACELINE" score --model "$work/tiny" --json >"$work/scores"
paste -d'|' "$work/a" "$work/scores" | while IFS='|' read -r g s; do
    want=$(printf '%s\n' "$g" | sed -E 's/.*"logprobs":\[([^]]*)\].*/\1/')
    got=$(printf '%s\n' "$s" | sed -E 's/.*"logprobs":\[([^]]*)\].*/\1/')
    case "$got" in *",$want") ;; *) fail "score differs from generate: $want / $got" ;; esac
done || exit 1
passed "score gives the log-probs of generate, bit for bit"
echo "$checks checks"
