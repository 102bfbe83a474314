# shellcheck shell=sh
# bed.sh - sourced by the scripts of this folder: a run of three steps with a checkpoint each, the
# same one without faults in one process, and what must be equal of the two.
. tests/e2e/common.sh
steps=3
tiny >/dev/null
# A run that hangs is ended, and fails: exit 124.
cat >"$work/paceline" <<P
#!/bin/sh
exec timeout -k 5 ${PACELINE_SECONDS:-40} "$PACELINE" "\$@"
P
chmod 700 "$work/paceline"
# exec_run DIR [key=value ...]: the run, in the foreground, in place of this shell
exec_run() {
    PACELINE=$work/paceline
    exec_tiny "$@" rollout.num_workers="${workers:-2}" trainer.total_training_steps=$steps \
        trainer.save_freq=1 trainer.compare_prompts=0
}
calm() { # the run without faults
    (workers=0 exec_run "$work/calm") >"$work/log" 2>&1 || { cat "$work/log"; fail "the run without faults"; }
    s=1
    while [ $s -le $steps ]; do
        rollouts "$work/calm" $s >"$work/calm.$s"
        s=$((s + 1))
    done
}
# differs_from_calm DIR: says what differs, or fails when nothing does
differs_from_calm() {
    cmp "$(policy "$work/calm" $steps)" "$(policy "$1" $steps)" || return 0
    cmp "$(optimizer "$work/calm" $steps)" "$(optimizer "$1" $steps)" || return 0
    s=1
    while [ $s -le $steps ]; do
        rollouts "$1" $s | cmp - "$work/calm.$s" || return 0
        s=$((s + 1))
    done
    return 1
}
like_calm() { # like_calm DIR CLAIM
    ! differs_from_calm "$1" || fail "$2"
    passed "$2"
}
# until_true SECONDS COMMAND...: polls, and fails when it takes longer
until_true() {
    tries=$(($1 * 50))
    shift
    while ! "$@" 2>/dev/null; do
        [ $tries -gt 0 ] || return 1
        tries=$((tries - 1))
        sleep 0.02
    done
}
# Points run beside each other, since each waits more than it computes: at_once COMMAND... starts one,
# and the file $work/bad tells which failed.
n_started=0
at_once() {
    ("$@" || { echo "$*" >>"$work/bad"; }) &
    n_started=$((n_started + 1))
    if [ $((n_started % ${PACELINE_JOBS:-8})) = 0 ]; then
        wait
        [ ! -f "$work/bad" ] || fail "$(cat "$work/bad")"
    fi
}
all_done() {
    wait
    [ ! -f "$work/bad" ] || fail "$(cat "$work/bad")"
}
