#!/bin/sh
# Claims: a monitor attaches to a live run and tells what it does; killed, stopped or hung it does
# nothing to the run; a killed coordinator goes on with the snapshot; a crashed and a finished run are
# told from their files alone; the terminal is given back.
. tests/e2e/common.sh
is_live=0
trap 'kill_all; rm -rf "$work"' EXIT
kill_all() { # all processes of the live run, once, who starts them again first
    is_live=$((is_live - 1))
    [ $is_live = 0 ] || return 0
    for lock in "$work/live/lock" "$work"/live/*.lock; do
        [ ! -s "$lock" ] || kill -9 "$(cat "$lock")" 2>/dev/null || true
    done
}
tiny
look() { "$PACELINE" monitor "$work/live" --once "$@"; }
# until_says PATTERN CLAIM: the monitor says so within half a minute
until_says() {
    tries=0
    until look --json 2>/dev/null | grep -qE "$1"; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { look --json >&2 || true; fail "$2"; }
        sleep 0.05
    done
    passed "$2"
}
step() { look --json | sed -E 's/.*"phase_ms":[0-9]+,"step":([0-9]+),.*/\1/'; }
writer() { look --json | sed -E 's/.*"snapshot":\{"run":"[^"]*","pid":([0-9]+),.*/\1/'; }
moves_on() { # moves_on CLAIM
    from=$(step)
    tries=0
    while [ "$(step)" -lt $((from + 2)) ]; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { cat "$work/log"; fail "$1"; }
        sleep 0.05
    done
    passed "$1"
}
no_escapes() { ! LC_ALL=C grep -q "$(printf '[\001-\010\013-\037\177]')" "$1" || fail "$2"; passed "$2"; }

expect 66 "no directory" "a directory that is not there" -- "$PACELINE" monitor "$work/none"
expect 66 "not the directory of a run" "a directory of something else" -- "$PACELINE" monitor "$work"
expect 64 "RUN_DIR or http" "no directory at all" -- "$PACELINE" monitor
expect 64 "http://HOST:PORT" "no such address" -- "$PACELINE" monitor "http://a b/" --once
expect 69 "monitor --web" "nobody at the address" -- "$PACELINE" monitor http://127.0.0.1:1 --once

# A live run of two workers that would go on for long.
exec_tiny "$work/live" rollout.num_workers=2 data.max_response_length=64 trainer.total_training_steps=100000 \
    trainer.save_freq=1000 trainer.test_freq=0 >"$work/log" 2>&1 &
run=$! is_live=1
until_says '"life":"running".*"step":[1-9][0-9]*,"metrics"' "a live run is told, with the newest metrics"
until_says '"name":"worker-1","state":"(BUSY|IDLE|JOINING)","strip":"[.JBI]*"' "both workers, with their strips"
look >"$work/text"
grep -qE '^step [0-9]+/100000 reward ' "$work/text" || { cat "$work/text"; fail "a line a step"; }
grep -qE '^running: step [0-9]+ of 100000, [a-z]+ for 0:[0-9]+, samples: .* workers: [0-2] busy' "$work/text" ||
    { cat "$work/text"; fail "a line of now"; }
no_escapes "$work/text" "lines of steps and of now, without an escape code"
"$PACELINE" monitor "$work/live" --json --interval 0.05 2>/dev/null | head -n 3 >"$work/lines"
[ "$(grep -c '^{"life":"running".*}$' "$work/lines")" = 3 ] || fail "a line of JSON every interval"
passed "a line of JSON every interval, until nobody reads"

# On a terminal: keys, and the screen given back.
if script -qec true /dev/null >/dev/null 2>&1; then # a terminal can be had
    printf 'wdmojkq' | TERM=xterm LC_ALL=C.UTF-8 script -qec "$PACELINE monitor $work/live" /dev/null >"$work/screen" 2>&1 ||
        fail "the page on a terminal"
    grep -q "$(printf '\033\\[?1049h')" "$work/screen" || fail "another screen"
    tail -c 40 "$work/screen" | grep -q "$(printf '\033\\[?1049l')" || fail "the screen is given back"
    passed "the page on a terminal, and q"
fi

# What happens to monitors does not happen to the run.
"$PACELINE" monitor "$work/live" --json --interval 0.05 >/dev/null &
killed=$!
"$PACELINE" monitor "$work/live" --json --interval 0.05 >/dev/null &
stopped=$!
moves_on "the run goes on beside two monitors"
kill -9 $killed
kill -STOP $stopped
moves_on "and when one is killed and one hangs"
kill -9 $stopped
wait $killed $stopped 2>/dev/null || true

# The coordinator is killed: the next one goes on with the file, and with the rows of the workers.
before=$(writer)
kill -9 "$before"
moves_on "a killed coordinator: the next one goes on with the snapshot"
[ "$(writer)" != "$before" ] || fail "another process writes it"
until_says '"name":"worker-0","state":"[A-Z]+","strip":"[.JBISL]*[BI][.JBISL]*"' "and with the rows of the workers"

# All of the run is killed.
kill_all
wait $run 2>/dev/null || true
until_says '"life":"not running"' "a run that crashed is not running"
look | grep -qE '^not running \(last seen 0:[0-9]+ ago\): step [0-9]+ of 100000' || fail "last seen"
passed "and it is told when it was last seen"
if script -qec true /dev/null >/dev/null 2>&1; then
    printf 'q' | TERM=xterm LC_ALL=C.UTF-8 script -qec "$PACELINE monitor $work/live" /dev/null >"$work/screen" 2>&1 || true
    ! grep -qE '[0-9] busy|to the end' "$work/screen" || fail "a dead run's workers shown as of now"
    passed "its workers are not shown as of now"
fi
timeout 20 "$PACELINE" monitor "$work/live" --json >"$work/text" || fail "a dead run: no wait for more"
[ "$(wc -l <"$work/text")" = 1 ] || fail "one line of a dead run"
cp -r "$work/live" "$work/bad"
: >"$work/bad/snapshot"
timeout 20 "$PACELINE" monitor "$work/bad" --json >"$work/text" || fail "a damaged snapshot: no wait for more"
grep -q '"life":"not running".*"note":"[^"]*damaged' "$work/text" || { cat "$work/text"; fail "damaged"; }
rm "$work/bad/snapshot" "$work/bad/metrics.jsonl"
timeout 20 "$PACELINE" monitor "$work/bad" --json >"$work/text" || fail "no snapshot: no wait for more"
grep -q '"note":"no snapshot, and metrics.jsonl: No such file' "$work/text" || { cat "$work/text"; fail "why"; }
passed "a run without a snapshot ends the monitor, with the reason"
(code=0; "$PACELINE" monitor "$work/live" --once --interval 1 2>"$work/err" || code=$?; echo $code >"$work/code") | :
for i in 1 2 3 4 5 6 7 8 9; do [ -s "$work/code" ] && break; sleep 0.1; done
[ "$(cat "$work/code")" = 0 ] && [ ! -s "$work/err" ] || { cat "$work/code" "$work/err"; fail "a closed pipe"; }
passed "a closed pipe is a good end"

# A finished run, with its snapshot and without.
run_tiny "$work/over" rollout.num_workers=2 >"$work/log" 2>&1 || { cat "$work/log"; fail "a run"; }
"$PACELINE" monitor "$work/over" >"$work/text" || fail "a finished run: no wait for more"
grep -q '^finished: step 4 of 4$' "$work/text" || { cat "$work/text"; fail "finished"; }
[ "$(grep -c '^step [1-4]/4 reward ' "$work/text")" = 4 ] || { cat "$work/text"; fail "its steps"; }
passed "a finished run is told from its files"
rm "$work/over/snapshot"
"$PACELINE" monitor "$work/over" --once >"$work/text" || fail "without a snapshot"
[ "$(grep -c '^step [1-4] reward ' "$work/text")" = 4 ] || { cat "$work/text"; fail "its steps, without a snapshot"; }
passed "and from metrics.jsonl alone"
echo "$checks checks"
