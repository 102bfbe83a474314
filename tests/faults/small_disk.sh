# shellcheck shell=sh
# small_disk.sh - for disk.sh, in a mount namespace of its own: the run of bed.sh on 3 MB, then on more.
set -eu
: "${work:?of bed.sh}"
mount -t tmpfs -o size=3m none "$work/disk"
small() {
    "$work/paceline" run configs/quickstart.yaml speculative.method=suffix model.path="$work/tiny" \
        trainer.default_local_dir="$work/disk/run" data.train_files=tests/data/first_digit.jsonl \
        data.val_files=tests/data/first_digit.jsonl data.train_batch_size=4 rollout.n=8 \
        data.max_response_length=24 actor.optim.lr=1e-3 trainer.val_before_train=false \
        trainer.max_actor_ckpt_to_keep=0 rollout.val_kwargs.n=1 rollout.num_workers=2 \
        trainer.total_training_steps=3 trainer.save_freq=1 trainer.compare_prompts=0
}
code=0
small 2>"$work/disk.err" || code=$?
cat "$work/disk.err"
[ $code = 74 ]
grep -q "$work/disk/run.*disk full; free space there" "$work/disk.err"
mount -o remount,size=64m "$work/disk"
small
cmp "$work/calm/checkpoints/global_step_3/policy/model.safetensors" \
    "$work/disk/run/checkpoints/global_step_3/policy/model.safetensors"
