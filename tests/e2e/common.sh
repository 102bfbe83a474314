# shellcheck shell=sh
# common.sh - sourced by the scripts of this folder: a tiny model, a short run, checks that say what
# they checked.  $PACELINE is the program under test.
set -eu
: "${PACELINE:?the program under test}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
checks=0

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
passed() {
    checks=$((checks + 1))
    echo "ok $checks - $*"
}
same() { # same FILE FILE CLAIM
    cmp "$1" "$2" || fail "$3"
    passed "$3"
}
differs() {
    ! cmp -s "$1" "$2" || fail "$3"
    passed "$3"
}
# expect CODE PATTERN CLAIM -- COMMAND...: exit code and a message on stderr
expect() {
    code=$1 pattern=$2 claim=$3
    shift 4
    got=0
    "$@" >"$work/out" 2>"$work/err" || got=$?
    [ "$got" = "$code" ] || { cat "$work/err" >&2; fail "$claim: exit $got, expected $code"; }
    grep -qE "$pattern" "$work/err" || { cat "$work/err" >&2; fail "$claim: no /$pattern/ in the message"; }
    [ "$(grep -c . "$work/err")" -le 3 ] || { cat "$work/err" >&2; fail "$claim: more than a sentence"; }
    passed "$claim"
}
tiny() {
    "$PACELINE" tiny "$work/tiny" --init-std 0.08
}
# run_tiny DIR [key=value ...]: four short steps that learn something (lr is large, rewards vary)
run_tiny() {
    (exec_tiny "$@")
}
exec_tiny() {
    dir=$1
    shift
    exec "$PACELINE" run configs/quickstart.yaml model.path="$work/tiny" trainer.default_local_dir="$dir" \
        data.train_files=tests/data/first_digit.jsonl data.val_files=tests/data/first_digit.jsonl \
        data.train_batch_size=4 rollout.n=8 data.max_response_length=24 actor.optim.lr=1e-3 \
        trainer.total_training_steps=4 trainer.save_freq=2 trainer.val_before_train=false \
        trainer.max_actor_ckpt_to_keep=0 rollout.val_kwargs.n=1 trainer.compare_prompts=2 \
        speculative.method=suffix "$@"
}
policy() { echo "$1/checkpoints/global_step_$2/policy/model.safetensors"; }
optimizer() { echo "$1/checkpoints/global_step_$2/optimizer.safetensors"; }
# what the laws fix of a step's rollouts: everything but the spec_ counters and token_source
rollouts() {
    zstd -dcq "$1/rollouts/step_00000$2.jsonl.zst" |
        sed -E 's/"spec_num_[a-z_]+":[0-9]+,?//g; s/"token_source":(\[[^]]*\]|"[^"]*"),?//'
}
