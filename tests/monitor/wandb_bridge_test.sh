#!/bin/sh
# wandb_bridge_test.sh - tools/wandb_bridge.py against a stand-in for the package wandb: what it logs,
# that it stays offline unless told, that it follows a live run to its end, and what it says when the
# package is missing.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
mkdir "$work/fake" "$work/run"
cat >"$work/fake/wandb.py" <<'PY'
import json
import os


class Run:
    def log(self, values, step):
        with open(os.environ["FAKE_LOG"], "a") as f:
            print(step, json.dumps(values, sort_keys=True), file=f)

    def finish(self):
        with open(os.environ["FAKE_LOG"], "a") as f:
            print("finish", file=f)


def init(project, name, dir, mode, config):
    with open(os.environ["FAKE_LOG"], "a") as f:
        print("init", project, name, mode, config.get("config.yaml"), file=f)
    return Run()
PY
export FAKE_LOG="$work/log"
bridge() { PYTHONPATH="$work/fake" PYTHONDONTWRITEBYTECODE=1 python3 tools/wandb_bridge.py "$@"; }

printf 'key: 1' >"$work/run/config.yaml"
printf '%s\n' '{"step":1,"a/b":0.5,"none":null,"text":"x","big":1e999}' 'not json' '[1]' '{"step":2,"a/b":1}' \
    '{"step":1,"a/b":9}' >"$work/run/metrics.jsonl"
printf '{"step":3,"torn' >>"$work/run/metrics.jsonl"
bridge "$work/run" >"$work/out"
printf '%s\n' 'init paceline run offline key: 1' '1 {"a/b": 0.5}' '2 {"a/b": 1}' finish >"$work/want"
cmp "$work/want" "$work/log" || fail "logged: $(cat "$work/log")"
grep -q '^2 steps logged to paceline (offline), 2 lines were none$' "$work/out" || fail "$(cat "$work/out")"

# a live run: its lock is held; a line comes late, and the bridge goes when the run does
rm "$work/log"
mkfifo "$work/go"
(
    exec 9>"$work/run/lock"
    flock 9
    echo locked >"$work/locked"
    read -r _ <"$work/go"
    printf '":0,"late":7}\n' >>"$work/run/metrics.jsonl"
) &
until [ -s "$work/locked" ]; do :; done
bridge "$work/run" --follow --interval 0.01 --mode disabled --project p --name n >"$work/out" &
bridge=$!
until grep -qs '^2 ' "$work/log"; do kill -0 "$bridge" || fail "the bridge is gone"; done
echo go >"$work/go"
wait
tail -n 2 "$work/log" | grep -q '^3 {"late": 7, "torn": 0}$' || fail "the late line: $(cat "$work/log")"
grep -q '^init p n disabled' "$work/log" || fail "options: $(cat "$work/log")"

code=0
PYTHONPATH="$work/none" python3 -I tools/wandb_bridge.py "$work/run" 2>"$work/err" >/dev/null || code=$?
if ! python3 -I -c 'import wandb' 2>/dev/null; then
    [ "$code" = 1 ] || fail "without wandb: exit $code"
    grep -q 'pip install wandb' "$work/err" || fail "without wandb: $(cat "$work/err")"
fi
code=0
bridge "$work/nowhere" 2>"$work/err" || code=$?
[ "$code" = 1 ] || fail "no directory: exit $code"
grep -q "nowhere' is not a directory" "$work/err" || fail "no directory: $(cat "$work/err")"
echo "the bridge logs what the lines say"
