#!/bin/sh
# kill.sh [KILLS_PER_ROLE [SEED]] - kill -9 of worker, coordinator, trainer, supervisor and reward
# child at random instants of a run: 0 differing bits in samples and weights, no sample lost, no step
# consumed twice with other weights.  Five of a role are killed in one run, since more than five a
# minute end it; the supervisor is started again by hand, as a user would.
. tests/e2e/common.sh
per_role=${1:-5}
seed=${2:-1}
steps=24
tiny
cat >"$work/reward.sh" <<'R'
#!/bin/sh
while read -r line; do
    id=$(printf '%s' "$line" | sed -E 's/^\{"id":([0-9]+),.*/\1/')
    n=$(printf '%s' "$line" | sed -E 's/.*"solution_str":"(([^"\\]|\\.)*)".*/\1/' | tr -cd 'aeiou' | wc -c)
    echo "{\"id\":$id,\"score\":0.$n}"
done
R
run() { # run DIR WORKERS
    exec_tiny "$1" rollout.num_workers="$2" reward.command="sh $work/reward.sh" trainer.total_training_steps=$steps \
        trainer.save_freq=4 trainer.compare_prompts=0
}
(run "$work/calm" 0) >"$work/log" 2>&1 || { cat "$work/log"; fail "the run without faults"; }

random() { # random N: 0 .. N-1, a stream of its own
    seed=$(((seed * 1103515245 + 12345) % 2147483648))
    echo $((seed / 65536 % $1))
}
pid_of() { # pid_of ROLE
    case $1 in
    supervisor) cat "$dir/lock" ;;
    reward) pgrep -fx "sh $work/reward.sh" | head -n 1 ;;
    *) cat "$dir/$1.lock" ;;
    esac 2>/dev/null | head -n 1
}
start() {
    (run "$dir" 2) >>"$work/log" 2>&1 &
    run_pid=$!
}
round=0
killed=0
while [ $((round * 5)) -lt "$per_role" ]; do
    round=$((round + 1))
    dir=$work/kill$round
    : >"$work/log"
    start
    left="worker-0 worker-1 coordinator trainer supervisor reward worker-0 coordinator trainer supervisor reward
        worker-1 coordinator trainer supervisor reward worker-0 coordinator trainer supervisor reward
        worker-1 coordinator trainer supervisor reward"
    for role in $left; do
        sleep "0.$(random 7)$(random 10)"
        kill -0 $run_pid 2>/dev/null || break
        pid=$(pid_of "$role")
        [ -n "$pid" ] && kill -9 "$pid" 2>/dev/null && killed=$((killed + 1)) && echo "killed $role ($pid)" >>"$work/log"
        if [ "$role" = supervisor ]; then
            wait $run_pid 2>/dev/null || true
            start
        fi
    done
    code=0
    wait $run_pid || code=$?
    [ $code = 0 ] || { cat "$work/log"; fail "round $round (seed $seed): exit $code"; }
    same "$(policy "$work/calm" $steps)" "$(policy "$dir" $steps)" "round $round, $killed killed so far: the same weights"
    s=1
    while [ $s -le $steps ]; do
        f=$(printf 'step_%06d.jsonl.zst' $s)
        for d in "$work/calm" "$dir"; do
            zstd -dcq "$d/rollouts/$f" | sed -E 's/"spec_num_[a-z_]+":[0-9]+,?//g; s/"token_source":(\[[^]]*\]|"[^"]*"),?//' \
                >"$work/$(basename "$d").txt"
        done
        cmp "$work/calm.txt" "$work/$(basename "$dir").txt" || fail "round $round: rollouts of step $s"
        s=$((s + 1))
    done
    passed "round $round: the same rollouts in all steps"
    rm -rf "$dir"
done
echo "$checks checks, $killed processes killed"
