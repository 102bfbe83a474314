#!/bin/sh
# Claims: wrong input ends with a sentence that names the object, and the right exit code; nothing
# that parses is left behind.
. tests/e2e/common.sh
tiny
config=configs/quickstart.yaml
expect 64 "unknown command 'fly'" "an unknown command" -- "$PACELINE" fly
expect 64 "unknown option '--modle'" "an unknown option" -- "$PACELINE" generate --modle x
expect 64 "not a whole number" "a number that is none" -- "$PACELINE" generate --model "$work/tiny" --prompt x --n 2x
expect 64 "out of range" "a number out of range" -- "$PACELINE" generate --model "$work/tiny" --prompt x --top-p 1.5
expect 64 "none of auto" "an unknown backend" -- "$PACELINE" generate --model "$work/tiny" --prompt x --isa sse
expect 66 "no model at" "no model" -- "$PACELINE" generate --model "$work/none" --prompt x
expect 66 "none.jsonl" "no prompts" -- "$PACELINE" generate --model "$work/tiny" --prompts "$work/none.jsonl"
expect 66 "none.yaml" "no config" -- "$PACELINE" run "$work/none.yaml"
expect 78 "did you mean 'actor_rollout_ref.rollout.temperature'" "an unknown key" -- \
    "$PACELINE" run $config actor_rollout_ref.rollout.temprature=1
expect 78 "allowed is" "a value out of range" -- "$PACELINE" run $config rollout.n=0
expect 78 "speculative.controller" "a controller that is none" -- "$PACELINE" run $config speculative.controller=fast
printf 'trainer:\n  save_freq: 2\n  sav_freq: 3\n' >"$work/bad.yaml"
expect 78 "bad.yaml:3:3.*did you mean 'trainer.save_freq'" "file, line and column of a wrong key" -- \
    "$PACELINE" run "$work/bad.yaml"

printf '{"prompt":"a"}\n\n{"prompt":"b"}\n' >"$work/p"
expect 65 "p:2: the line is empty" "an empty line" -- "$PACELINE" generate --model "$work/tiny" --prompts "$work/p"
printf '{"prompt":"a"}\n{"prompt":\n' >"$work/p"
expect 65 "p:2" "a broken line" -- "$PACELINE" generate --model "$work/tiny" --prompts "$work/p"
head -c 3000 /dev/zero | tr '\0' 'q' >"$work/long"
expect 65 "the model's context is" "a prompt over the context" -- \
    "$PACELINE" generate --model "$work/tiny" --raw --prompt "$(cat "$work/long")"
run="$PACELINE run $config model.path=$work/tiny trainer.default_local_dir=$work/run data.max_response_length=8"
cp tests/data/first_digit.jsonl "$work/d" && echo '{"prompt": 3' >>"$work/d"
expect 65 "d:9:" "a broken line of training data" -- $run data.train_files="$work/d"
expect 65 "[Cc]ontext|longer|tokens" "a prompt over max_prompt_length" -- $run data.max_prompt_length=4
sed 's/last_number/telepathy/' tests/data/first_digit.jsonl >"$work/d"
expect 78 "telepathy" "an unknown verifier" -- $run data.train_files="$work/d"
[ ! -e "$work/run/checkpoints" ] || fail "a refused run left checkpoints"

expect 65 "not valid UTF-8" "bytes that are no text" -- "$PACELINE" tokenize --model "$work/tiny" --text "$(printf 'a\377b')"
expect 64 "out of range" "top-p 0" -- "$PACELINE" generate --model "$work/tiny" --prompt x --top-p 0
expect 64 "not empty" "tiny into a directory that is in use" -- "$PACELINE" tiny "$work/tiny"
expect 78 "not empty and not a run" "a run directory that is none" -- \
    "$PACELINE" run $config model.path="$work/tiny" trainer.default_local_dir="$work/tiny" data.max_response_length=8
got=0
run_tiny "$work/closed" trainer.total_training_steps=1 >&- 2>"$work/err" || got=$?
[ $got = 0 ] && [ "$(grep -cvE '^[0-9]+$' "$work/closed/lock")" = 0 ] || { cat "$work/err"; fail "a closed standard output: exit $got"; }
passed "a closed standard output goes into no other file"
expect 78 "began with actor_rollout_ref.rollout.n 8" "another n in a run that numbers its samples" -- \
    run_tiny "$work/closed" rollout.n=4

# Model files: cut at many places, bits flipped; never a crash.
for f in config.json model.safetensors tokenizer.json; do
    cp -r "$work/tiny" "$work/cut"
    size=$(stat -c %s "$work/tiny/$f")
    for part in 0 1 7 8 9 50 100 1000 $((size / 2)) $((size - 2)); do
        [ "$part" -lt "$size" ] || continue
        head -c "$part" "$work/tiny/$f" >"$work/cut/$f"
        got=0
        "$PACELINE" generate --model "$work/cut" --prompt x --max-tokens 1 >/dev/null 2>"$work/err" || got=$?
        case $got in 65 | 66 | 74) ;; *) cat "$work/err"; fail "$f cut at $part: exit $got" ;; esac
        grep -q "$work/cut" "$work/err" || { cat "$work/err"; fail "$f cut at $part: the message names no file"; }
    done
    rm -rf "$work/cut"
    passed "$f cut short"
done

# A full disk: said, the run goes on, nothing half-written parses.
if [ -c /dev/full ]; then
    got=0
    "$PACELINE" generate --model "$work/tiny" --prompt x --max-tokens 4 >/dev/full 2>"$work/err" || got=$?
    [ $got = 74 ] || fail "standard output is full: exit $got"
    passed "a full standard output is an error"
fi
# A full disk during a checkpoint: said, the one before it stays whole, the run can go on there.
mkdir "$work/small"
if mount -t tmpfs -o size=2200k none "$work/small" 2>/dev/null; then
    trap 'umount "$work/small" 2>/dev/null || true; rm -rf "$work"' EXIT INT TERM
    got=0
    run_tiny "$work/small/run" trainer.save_freq=1 >"$work/log" 2>&1 || got=$?
    [ $got = 74 ] || { cat "$work/log"; fail "a full disk: exit $got"; }
    grep -qiE 'no space|disk' "$work/log" || { cat "$work/log"; fail "a full disk is named"; }
    "$PACELINE" inspect "$work/small/run" >"$work/out" 2>&1 || { cat "$work/out"; fail "the older checkpoint"; }
    mount -o remount,size=64m "$work/small"
    run_tiny "$work/small/run" trainer.save_freq=1 >"$work/log" 2>&1 || { cat "$work/log"; fail "after a full disk"; }
    run_tiny "$work/roomy" >"$work/log" 2>&1
    same "$(policy "$work/roomy" 4)" "$(policy "$work/small/run" 4)" "a run goes on after a full disk, same bits"
    umount "$work/small"
else
    echo "skipped: no right to mount a small file system"
fi

# The run directory is one process's.
run_tiny "$work/once" trainer.total_training_steps=1 >"$work/log" 2>&1
expect 78 "resume_mode is disable" "a run directory that is taken" -- run_tiny "$work/once" trainer.resume_mode=disable
echo "$checks checks"
