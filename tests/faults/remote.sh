#!/bin/sh
# remote.sh - a worker of another machine: another network (a namespace with a veth pair), none of the
# run's files, its own cache.  It joins by tcp with CURVE keys, fetches model, tokenizer and every
# version, and the run that has no other worker ends with the weights of the run in one process.  A
# worker with other keys, or none, does not get in.  Skipped where namespaces may not be made.
. tests/e2e/common.sh
ns=paceline-$$
tag=$(($$ % 10000))
ip netns add "$ns" 2>/dev/null || { echo "no network namespaces here"; exit 77; }
run_pid='' worker_pid=''
cleanup() {
    [ -z "$worker_pid" ] || kill -9 "$worker_pid" 2>/dev/null || true
    [ -z "$run_pid" ] || kill "$run_pid" 2>/dev/null || true
    wait 2>/dev/null || true
    ip netns del "$ns" 2>/dev/null || true
    ip link del "plh$tag" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
ip link add "plh$tag" type veth peer name "plw$tag" 2>/dev/null || { echo "no veth pairs here"; exit 77; }
ip link set "plw$tag" netns "$ns"
ip addr add 10.213.77.1/30 dev "plh$tag" && ip link set "plh$tag" up
ip -n "$ns" addr add 10.213.77.2/30 dev "plw$tag" && ip -n "$ns" link set "plw$tag" up

mkdir "$work/probe"
ip netns exec "$ns" unshare -m sh -c 'mount -t tmpfs none "$0"' "$work/probe" 2>/dev/null ||
    { echo "no mount namespaces here"; exit 77; }

tiny
"$PACELINE" keygen "$work/keys" >/dev/null
"$PACELINE" keygen "$work/foreign" >/dev/null
run_tiny "$work/base" >"$work/log" 2>&1 || { cat "$work/log"; fail "the run in one process"; }
# away COMMAND...: in the other network, where the run's directory is empty
away() {
    ip netns exec "$ns" unshare -m sh -c 'mount -t tmpfs none "$0" && cd / && exec "$@"' "$work/run" "$@"
}
port=$((20000 + tag))
exec_tiny "$work/run" rollout.num_workers=1 --listen "tcp://0.0.0.0:$port" --keys "$work/keys" >"$work/log" 2>&1 &
run_pid=$!
tries=0
while [ ! -f "$work/run/worker-0.lock" ] && [ $tries -lt 500 ]; do tries=$((tries + 1)); sleep 0.02; done
kill -TERM "$(head -n 1 "$work/run/worker-0.lock")" # the run has nobody of its own
mkdir "$work/home"
# The run waits for somebody: these are nobody.
got=0
HOME=$work/home away timeout 3 "$PACELINE" worker --connect "tcp://10.213.77.1:$port" --keys "$work/foreign" >"$work/foreign.log" 2>&1 || got=$?
! grep -q joined "$work/foreign.log" || fail "a worker with other keys is let in"
passed "a worker with other keys does not get in"
HOME=$work/home away "$PACELINE" worker --connect "tcp://10.213.77.1:$port" --keys "$work/keys" >"$work/worker.log" 2>&1 &
worker_pid=$!
# A worker that ends before its run would leave it waiting for ever.
while kill -0 $run_pid 2>/dev/null; do
    if ! kill -0 $worker_pid 2>/dev/null; then
        sleep 5
        kill -0 $run_pid 2>/dev/null || break
        cat "$work/log" "$work/worker.log"
        fail "the worker has left, and the run goes on waiting"
    fi
    sleep 0.1
done
code=0
wait $run_pid || code=$?
run_pid=''
[ $code = 0 ] || { cat "$work/log" "$work/worker.log"; fail "the run: exit $code"; }
wait $worker_pid || { cat "$work/worker.log"; fail "the worker of another machine"; }
worker_pid=''
grep -q 'joined run' "$work/worker.log" || { cat "$work/worker.log"; fail "the worker did not join"; }
same "$(policy "$work/base" 4)" "$(policy "$work/run" 4)" "a worker of another machine: the same weights"
for s in 3 4; do
    rollouts "$work/base" $s >"$work/a" && rollouts "$work/run" $s >"$work/b"
    same "$work/a" "$work/b" "and the same rollouts in step $s"
done
[ -z "$(find "$work/home" -name 'worker-*')" ] || fail "its cache stays behind"
passed "its cache is gone"
echo "$checks checks"
