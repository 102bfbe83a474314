#!/bin/sh
# liar.sh [LIE ...] - a run with an honest worker and one that lies (tests/faults/faulty.c): the lie is
# found before its step is consumed, samples and weights are those of the run in one process, and
# the liar is thrown out in words.  AUDIT=0: without redrawing tokens.  Then redraw alone is not found,
# and the run goes on with it, which the lie "unaudited" shows: it is what the audit is for.
. tests/e2e/common.sh
: "${PACELINE_FAULTY:?paceline_faulty of the same folder}"
lies=${*:-token logprob nan finish version cut uid sibling second prefix redraw unaudited}
audit=${AUDIT:-1}
tiny
# A lie about a prefix wants samples that take a while.
run() { # run DIR LIE WORKERS
    length=24 steps=6
    [ "$2" != prefix ] || length=400 steps=3
    exec_tiny "$1" trainer.total_training_steps=$steps trainer.save_freq=$steps trainer.compare_prompts=0 \
        rollout.num_workers="$3" data.max_response_length=$length trainer.audit="$audit"
}
(run "$work/base" token 0) >"$work/log" 2>&1 || { cat "$work/log"; fail "the run in one process"; }
case " $lies " in
*" prefix "*) (run "$work/base-prefix" prefix 0) >"$work/log" 2>&1 || { cat "$work/log"; fail "the long run in one process"; } ;;
esac

with_liar() { # with_liar LIE
    lie=$1 mode=$1 dir=$work/$1 base=$work/base liar="" children=""
    steps=6
    [ "$lie" != unaudited ] || mode=redraw audit=0
    [ "$lie" != prefix ] || base=$work/base-prefix steps=3
    trap 'kill $children 2>/dev/null || true' EXIT
    if [ "$lie" = prefix ]; then
        SEEN=1 SLOW_MS=2 PACELINE=$PACELINE_FAULTY # its leases are looked at; samples take a while
        export SEEN SLOW_MS
    fi
    (run "$dir" "$lie" 1) >"$work/$lie.log" 2>&1 &
    run=$!
    children=$run
    tries=0
    while [ ! -s "$dir/endpoint" ] && [ $tries -lt 1500 ]; do tries=$((tries + 1)); sleep 0.02; done
    LIE=$mode "$PACELINE_FAULTY" worker --connect "$dir" --threads 1 >"$work/$lie.liar" 2>&1 &
    liar=$!
    children="$children $liar"
    code=0
    wait $run || code=$?
    [ $code = 0 ] || { cat "$work/$lie.log" "$work/$lie.liar"; fail "$lie: the run ends with $code"; }
    code=0
    wait $liar || code=$?
    if [ "$mode" = redraw ] && [ "$audit" = 0 ]; then
        grep -q '^lied' "$work/$lie.liar" || fail "$lie: it never lied"
        ! grep -E 'event=quarantine|audit:' "$work/$lie.log" || fail "$lie: found without an audit"
        differs "$(policy "$base" $steps)" "$(policy "$dir" $steps)" "$lie: not found without the audit, and other weights"
        return
    fi
    grep -q '^lied' "$work/$lie.liar" || { cat "$work/$lie.liar"; fail "$lie: it never lied"; }
    if [ "$lie" = prefix ]; then
        [ $code = 137 ] || { cat "$work/$lie.liar"; fail "$lie: the liar ends with $code"; }
    else
        [ $code = 69 ] || { cat "$work/$lie.liar"; fail "$lie: the liar ends with $code"; }
        grep -q 'refuses worker .*quarantined: ' "$work/$lie.liar" || { cat "$work/$lie.liar"; fail "$lie: not told why"; }
    fi
    same "$(policy "$base" $steps)" "$(policy "$dir" $steps)" "$lie: the same weights"
    s=1
    while [ $s -le $steps ]; do
        rollouts "$base" $s >"$work/$lie.a" && rollouts "$dir" $s >"$work/$lie.b"
        cmp "$work/$lie.a" "$work/$lie.b" || fail "$lie: other rollouts in step $s"
        s=$((s + 1))
    done
    passed "$lie: the same rollouts in all steps"
    echo "    $(grep -c '^lied' "$work/$lie.liar") lies, then: $(grep -h 'refuses' "$work/$lie.liar" | cut -c1-240)"
    if [ "$lie" = prefix ]; then # who said it is gone, who went on behind it is not to blame
        lied=$(sed -nE 's/^lied: prefix of sample ([0-9]+)/\1/p' "$work/$lie.liar")
        again=$(sed -nE '/disproved by the audit/,$ s/.*event=lease batch=[0-9]+ (uid=[0-9]+ prefix=[0-9]+).*/\1/p' "$work/$lie.log")
        grep -q "sample $lied of batch [0-9]* was disproved" "$work/$lie.log" || { cat "$work/$lie.log"; fail "$lie: not found"; }
        echo "$again" | grep -m 1 "uid=$lied " | grep -q 'prefix=0$' || { cat "$work/$lie.log"; fail "$lie: not from its prompt"; }
        passed "$lie: rolled out again from the prompt"
    fi
    ! grep -E 'event=quarantine worker=worker-0' "$work/$lie.log" || fail "$lie: the honest worker is blamed"
    passed "$lie: the honest worker is not blamed"
    grep -hE 'audit:|event=quarantine|event=nobody_blamed' "$work/$lie.log" | cut -c1-240 | head -n 2 | sed "s/^/    /"
}
for name in $lies; do
    (with_liar "$name") >"$work/$name.out" 2>&1 &
    eval "pid_of_$name=$!"
done
failed=0
for name in $lies; do
    eval "pid=\$pid_of_$name"
    wait "$pid" || failed=$((failed + 1))
    cat "$work/$name.out"
    [ -z "${KEEP:-}" ] || { mkdir -p "$KEEP/$name"; cp "$work/$name".* "$KEEP/$name"; }
done
[ $failed = 0 ] || fail "$failed of the lies: $lies"
echo "$(cat "$work"/*.out | grep -c '^ok') checks"
