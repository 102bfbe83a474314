#!/bin/sh
# bench.sh PROGRAM - every bench runs once on a tiny model and prints the records of NAMES 5.7: a
# figure a case, all keys, numbers where numbers belong.  No figure is judged here.
set -eu

program=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
n_failed=0

fail() {
    echo "FAIL: $*" >&2
    n_failed=$((n_failed + 1))
}

number='-?[0-9][0-9.e+-]*'
text='"[^"]+"'

# has LINE KEY PATTERN
has() {
    printf '%s\n' "$1" | grep -Eq "[{,]\"$2\":($3)[,}]" || fail "no $2 in $1"
}

# bench NAME CASES PATTERN_OF_RATIO [argument ...]: as many lines, each whole.
bench() {
    name=$1 n=$2 ratio=$3
    shift 3
    if ! "$program" bench "$name" --quick --json --model "$dir/tiny" "$@" \
        >"$dir/out" 2>"$dir/notes"; then
        fail "bench $name: $(cat "$dir/notes")"
        return
    fi
    [ "$(wc -l <"$dir/out")" -eq "$n" ] || fail "bench $name: not $n lines: $(cat "$dir/out")"
    while read -r line; do
        has "$line" bench "\"$name\""
        has "$line" case '"[a-z]+=[0-9]+(,[a-z]+=[0-9]+)*"'
        has "$line" value "$number"
        has "$line" unit "$text"
        has "$line" ratio "$ratio"
        has "$line" ratio_to "$text|null"
        has "$line" machine "$text"
        has "$line" threads '[1-9][0-9]*'
        has "$line" commit "$text"
    done <"$dir/out"
    grep -Eq '^noise: (steal|not known)' "$dir/notes" || fail "bench $name does not say how noisy it was"
}

# refused CODE argument ...
refused() {
    code=$1
    shift
    rc=0
    "$program" "$@" >"$dir/out" 2>"$dir/notes" || rc=$?
    [ "$rc" -eq "$code" ] || fail "$*: exit code $rc, not $code"
    [ -s "$dir/notes" ] || fail "$*: refused without a word"
}

"$program" tiny "$dir/tiny" >/dev/null
bench decode 3 "$number" --threads 1
grep -q '"case":"batch=8,context=[0-9]*,threads=1"' "$dir/out" || fail "no case of batch 8"
bench decode 3 "$number" --isa ref --threads 2
bench verify 6 "$number"
grep -q '"case":"rows=1,.*"ratio":1,"ratio_to":"one row"' "$dir/out" || fail "one row is not 1"
bench prefill 1 "$number|null"
bench train 1 "$number|null"
bench start 1 null
bench memory 1 "$number" data.train_batch_size=2 rollout.n=2 data.max_response_length=8

awk 'BEGIN {
    for (i = 0; i < 70; i++) {
        t = "2,3,4"
        for (k = 0; k < i % 13; k++)
            t = t ",5"
        printf "{\"uid\":%d,\"prompt_ids\":[1,%d],\"tokens\":[%s]}\n", i, i / 8, t
    }
}' >"$dir/lengths.jsonl"
bench idle 66 "$number" --rollouts "$dir/lengths.jsonl"
bench whatif 8 "$number"
bench whatif 12 "$number" --drafter random
bench trace 4 "$number"
bench checkpoint 4 "$number|null"
bench preempt 4 "$number"
bench monitor 1 "$number" --threads 1
bench simulate 3 "$number|null"
# The arms: those of a second sitting go on, and the drafter trains then too.
"$program" drafter warmup --model "$dir/tiny" --out "$dir/drafter" --tokens 2000 --window 64 --vocab 256 \
    >"$dir/out" 2>"$dir/notes" || fail "a drafter for the arms: $(cat "$dir/notes")"
for steps in 2 12; do
    "$program" bench arms --json --model "$dir/tiny" --dir "$dir/arms" --drafter "$dir/drafter" --steps $steps \
        --arms none,frozen,adaptive,adaptive-1 data.train_batch_size=2 actor_rollout_ref.rollout.n=4 \
        data.max_response_length=48 >"$dir/out" 2>"$dir/notes" || fail "bench arms: $(cat "$dir/notes")"
done
grep -q 'going on after step 2' "$dir/notes" || fail "bench arms begins anew: $(cat "$dir/notes")"
[ "$(grep -c '^0,[0-9]*,none,' "$dir/arms/arms.csv")" -eq 12 ] || fail "bench arms: $(cat "$dir/arms/arms.csv")"
awk -F, '$2 > 2 && $3 == "adaptive-1" { n += $13 } END { exit n < 1 }' "$dir/arms/arms.csv" ||
    fail "nothing was trained after the second start: $(cat "$dir/arms/arms.csv")"
grep -q '"bench":"arms"' "$dir/out" || fail "bench arms reports nothing: $(cat "$dir/out")"
refused 64 bench arms --model "$dir/tiny" --dir "$dir/arms" --drafter "$dir/drafter" --arms frozen
refused 66 bench arms --model "$dir/tiny" --dir "$dir/arms" --drafter "$dir/absent" --arms none,frozen data.max_response_length=48
# What was begun goes on with the same model, drafter and keys only.
go_on() { # go_on DRAFTER LENGTH
    refused 64 bench arms --model "$dir/tiny" --dir "$dir/arms" --drafter "$1" --steps 13 --arms none,frozen \
        data.train_batch_size=2 actor_rollout_ref.rollout.n=4 data.max_response_length="$2"
}
"$program" drafter warmup --model "$dir/tiny" --out "$dir/other" --tokens 1000 --window 64 --vocab 128 \
    >"$dir/out" 2>"$dir/notes" || fail "another drafter: $(cat "$dir/notes")"
go_on "$dir/other" 48
go_on "$dir/drafter" 40
refused 64 bench arms --model "$dir/tiny" --dir "$dir/arms2" --drafter "$dir/drafter" --arms none \
    actor_rollout_ref.model.path="$dir/other"
refused 64 bench
refused 64 bench nonsense
refused 64 bench decode surplus
refused 64 bench simulate --quick --model "$dir/tiny" one
refused 64 bench idle --quick --model "$dir/tiny"
refused 66 bench idle --quick --model "$dir/tiny" --rollouts "$dir/absent"
refused 66 bench decode --model "$dir/absent"
refused 69 bench memory --quick --model "$dir/tiny" no.such.key=1

[ "$n_failed" -eq 0 ] && echo "bench: every name, every key"
