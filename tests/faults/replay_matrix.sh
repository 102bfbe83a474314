#!/bin/sh
# replay_matrix.sh [TRACES [SEED]] - traces made under random kills of workers, coordinator and trainer,
# each replayed by 1, 2, 3 and 7 workers and in one process, with 1 and 2 threads, every instruction
# set of the machine, and no drafter, suffix, learned and random: 0 differing bits.
. tests/e2e/common.sh
traces=${1:-2}
seed=${2:-1}
steps=8
tiny
mkdir "$work/tmp"
TMPDIR=$work/tmp
export TMPDIR
quiet="trainer.save_freq=3 trainer.compare_prompts=0"
isas=""
for isa in ref avx2 avx512 amx; do
    if echo '{"tokens":[1,2]}' | "$PACELINE" score --model "$work/tiny" --isa $isa --json >"$work/out" 2>&1; then
        isas="$isas $isa"
    fi
done
random() { # random N: 0 .. N-1, a stream of its own
    seed=$(((seed * 1103515245 + 12345) % 2147483648))
    echo $((seed / 65536 % $1))
}
# shellcheck disable=SC2086 # words are wanted
killed_run() { # killed_run DIR: two steps in one process, then workers with a drafter, under kills
    dir=$1 killed=0
    rm -rf "$work/warm"
    run_tiny "$dir" $quiet trainer.total_training_steps=2 >"$work/log" 2>&1 || { cat "$work/log"; fail "two steps in one process"; }
    "$PACELINE" drafter warmup --model "$work/tiny" --data "$dir" --out "$work/warm" --vocab 256 --steps 20 --hold-out uid \
        >"$work/log" 2>&1 || { cat "$work/log"; fail "a drafter"; }
    SLOW_MS=4 PACELINE=$PACELINE_FAULTY exec_tiny "$dir" $quiet rollout.num_workers=2 speculative.method=auto \
        speculative.drafter.init="$work/warm" speculative.train.buffer_mb=8 trainer.total_training_steps=$steps \
        >"$work/log" 2>&1 &
    pid=$!
    for role in worker-0 worker-1 coordinator trainer worker-0 worker-1 coordinator trainer worker-0 worker-1; do
        sleep "0.$(random 4)$(random 10)"
        kill -0 $pid 2>/dev/null || break
        victim=$(head -n 1 "$dir/$role.lock" 2>/dev/null || true)
        [ -n "$victim" ] && kill -9 "$victim" 2>/dev/null && killed=$((killed + 1))
    done
    code=0
    wait $pid || code=$?
    [ $code = 0 ] || { cat "$work/log"; fail "the run under kills (seed $seed): exit $code"; }
    [ -d "$dir/drafter/versions/1" ] || { mkdir -p "$dir/drafter/versions" && cp -r "$work/warm" "$dir/drafter/versions/1"; }
    passed "a trace of $steps steps, $killed processes killed"
}
n=0
i=0
while [ $i -lt "$traces" ]; do
    i=$((i + 1))
    killed_run "$work/run$i"
    for w in 0 1 2 3 7; do
        for threads in 1 2; do
            for isa in $isas; do
                for who in none suffix 1 random; do
                    "$PACELINE" replay "$work/run$i" --json --workers $w --threads $threads --isa "$isa" --drafter $who \
                        --controller fixed:4_2_8 >"$work/out" 2>"$work/err" ||
                        { cat "$work/out" "$work/err"; fail "workers $w, threads $threads, $isa, drafter $who"; }
                    [ "$(grep -c '"policy":"equal".*"differing_samples":0' "$work/out")" = $steps ] ||
                        { cat "$work/out"; fail "workers $w, threads $threads, $isa, drafter $who: not all steps"; }
                    n=$((n + 1))
                done
            done
        done
        passed "trace $i, workers $w: 0 differing bits, $n replays so far"
    done
    rm -rf "$work/run$i"
done
echo "$checks checks, $n replays"
