#!/bin/sh
# web.sh - the page of a run: what it shows, what it refuses, and that it does nothing to the run.
# shellcheck source=tests/e2e/common.sh
. tests/e2e/common.sh
run=$work/run
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT

# serve RUN ADDR [options]: its url in $url, its process in $server
serve() {
    : >"$work/served"
    "$PACELINE" monitor "$1" --web "$2" >"$work/served" 2>"$work/served.err" ${3:+"$3" "$4"} &
    server=$!
    tries=0
    until url=$(sed -n 's,^\(http://[^ ]*\).*,\1,p' "$work/served" | head -n 1) && [ -n "$url" ]; do
        kill -0 "$server" 2>/dev/null || { cat "$work/served.err" >&2; fail "the page is not served"; }
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "the page is not served within a minute"
        sleep 0.1
    done
}
leave() {
    kill "$server"
    code=0
    wait "$server" || code=$?
    server=""
    [ $code = 0 ] || { cat "$work/served.err" >&2; fail "the server ended with $code"; }
}

tiny >/dev/null
run_tiny "$run" trainer.total_training_steps=2 trainer.compare_prompts=0 >/dev/null 2>&1
find "$run" -type f -exec sha256sum {} + | sort >"$work/before"

# 1. On this machine: the hostile requests, the figures of a real run, floods.
serve "$run" 127.0.0.1:0
python3 tests/monitor/hostile_http.py "$url" "$server" "$run" || fail "hostile requests"
passed "hostile requests are refused in words, floods are outlived"
leave
find "$run" -type f -exec sha256sum {} + | sort >"$work/after"
same "$work/before" "$work/after" "the page changes no file of the run"

# 2. For other machines: the token.
serve "$run" 0.0.0.0:0 --token-file "$work/token"
port=${url##*:}
python3 tests/monitor/hostile_http.py "http://127.0.0.1:${port%/}/" "$server" "$run" "$work/token" ||
    fail "the token"
passed "another address than loopback wants the token"
leave

# Asked for, it is wanted on this machine too.
serve "$run" 127.0.0.1:0 --token-file "$work/token"
ask() { python3 -c 'import sys, urllib.request as u, urllib.error as e
try: print(u.urlopen(u.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})).read().decode())
except e.HTTPError as x: print(x.code)' "$@"; }
[ "$(ask "${url}api/snapshot" none)" = 401 ] || fail "--token-file on loopback"
passed "--token-file is enforced on loopback"
token=$(cat "$work/token")
ask "${url}api/snapshot" "$token" | grep -q '^{"life":"finished",' || fail "life of the run"
ask "${url}metrics" "$token" | grep -q '^paceline_run_alive 0$' || fail "paceline_run_alive"
passed "the page and Prometheus tell whether the run lives"
mv "$run" "$run.away"
ask "${url}api/snapshot" "$token" >"$work/answer"
mv "$run.away" "$run"
[ "$(cat "$work/answer")" = 404 ] || fail "a run directory that is gone"
leave

# 3. What cannot be served is said.
expect 66 "no run directory|is not there|no such" "a run that is not there" -- "$PACELINE" monitor "$work/none" --web
mkdir "$work/bare"
expect 66 "not the directory of a run" "a directory without a run" -- "$PACELINE" monitor "$work/bare" --web
expect 64 "port" "an address without a port" -- "$PACELINE" monitor "$run" --web 127.0.0.1:x
chmod 644 "$work/token"
expect 74 "others may read it" "a token that others may read" -- \
    "$PACELINE" monitor "$run" --web 0.0.0.0:0 --token-file "$work/token"
echo "$checks checks"
