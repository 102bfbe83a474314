#!/bin/sh
# run.sh [--soak] - checks the models of this folder with spin; one line a check.  Exit code 0: all
# verdicts are as expected; 1: a surprise; 77: spin or gcc is missing.
#
# Without --soak: safety, each search complete (every reachable state), and seeded bugs that must be
# found.  With it: larger fault budgets, searched by BITSTATE (a part, hash factor shown), and
# liveness under weak fairness.
set -eu
for tool in spin gcc; do
    command -v "$tool" >/dev/null || { echo "$0: no $tool here, the models are not checked" >&2; exit 77; }
done
soak=${1:-}
case $soak in
'' | --soak) ;;
*) echo "usage: $0 [--soak]" >&2; exit 64 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
surprises=0
seconds_max=600 # of one check; the searches are bounded, this is for a machine that hangs
megabytes=1000
[ -z "$soak" ] || { seconds_max=3600 megabytes=4000; }

# field PATTERN: the number before or behind a word of pan's report
states() { awk '/states, stored/ {print $1; exit}' "$work/out"; }
depth() { awk '/depth reached/ {sub(/.*depth reached /, ""); sub(/,.*/, ""); print; exit}' "$work/out"; }
factor() { awk '/hash factor:/ {print $3; exit}' "$work/out"; }

# check HOLDS|FAILS MODEL NAME "SPIN DEFINES" "GCC DEFINES" "PAN OPTIONS"
check() {
    want=$1 model=$2 name=$3
    opt=-O1 # short searches: the compiler takes longer than they do
    [ "$want" = HOLDS ] || opt=-O0
    rm -rf "$work/pan" && mkdir "$work/pan"
    # shellcheck disable=SC2086 # lists of options
    if ! (cd "$work/pan" && spin -a $4 "$here/$model.pml" >../out 2>&1 &&
        gcc $opt -w -DNOREDUCE -DMEMLIM=$megabytes $5 -o pan pan.c >>../out 2>&1); then
        cat "$work/out" >&2
        echo "$0: $model $name does not build" >&2
        exit 1
    fi
    began=$(date +%s)
    # shellcheck disable=SC2086
    (cd "$work/pan" && timeout "$seconds_max" ./pan $6 >../out 2>&1) || true
    took=$(($(date +%s) - began))
    # A search that was cut short proves nothing.
    if grep -qE 'search depth too small|out of memory|max search depth|hash-table full' "$work/out"; then
        got=CUT
    elif grep -q 'errors: 0' "$work/out"; then
        got=HOLDS
    elif grep -qE 'assertion violated|acceptance cycle' "$work/out"; then
        got=FAILS
    else
        got=UNKNOWN
    fi
    verdict="$got"
    [ "$got" != FAILS ] || verdict="fails, as it must"
    [ "$got" != HOLDS ] || verdict=holds
    if [ "$got" != "$want" ]; then
        verdict="SURPRISE: $got, expected $want"
        surprises=$((surprises + 1))
        grep -E 'pan:|error|depth' "$work/out" >&2 || cat "$work/out" >&2
    fi
    more=$(factor)
    printf '%-8s %-28s %10s states  depth %6s %5s s  %s%s\n' "$model" "$name" "$(states)" "$(depth)" \
        "$took" "$verdict" "${more:+, hash factor $more}"
}

safe="-DSAFETY"
plain="-m1000000"
live="-DNFAIR=8"
fair="-a -f -m5000000"
bits="-DSAFETY -DBITSTATE"
none="-DN_COORDINATOR=0 -DN_WORKER=0 -DN_SILENT=0 -DN_TRAINER=0 -DN_DOUBLED=0 -DN_LOST=0"
# without NAME: the budgets $none, but NAME's is one
only() { echo "$none" | sed "s/-DN_$1=0/-DN_$1=1/"; }
quiet="-DN_PUBLISHER=0 -DN_COORDINATOR=0 -DN_RECEIVER=0 -DN_DOUBLED=0 -DN_LOST=0 -DN_HARMED=0"

check HOLDS lease "no fault" "$none" "$safe" "$plain"
check HOLDS lease "coordinator dies" "$(only COORDINATOR) -DCAP_N=1" "$safe" "$plain"
check HOLDS lease "worker dies" "$(only WORKER) -DCAP_N=1" "$safe" "$plain"
check HOLDS lease "worker is silent, returns" "$(only SILENT) -DCAP_N=1" "$safe" "$plain"
check HOLDS lease "trainer dies" "$(only TRAINER)" "$safe" "$plain"
check HOLDS lease "message lost or doubled" "$(only DOUBLED | sed s/LOST=0/LOST=1/)" "$safe" "$plain"
check HOLDS lease "worker lies, doubled" "-DLIAR $(only DOUBLED)" "$safe" "$plain"
check FAILS lease BUG_ACK_BEFORE_SYNC "-DBUG_ACK_BEFORE_SYNC $none" "$safe" "$plain"
check FAILS lease BUG_NO_EPOCH "-DBUG_NO_EPOCH $(only COORDINATOR) -DCAP_N=1" "$safe" "$plain"
check FAILS lease BUG_BATCH_BEFORE_SYNC "-DBUG_BATCH_BEFORE_SYNC $none" "$safe" "$plain"
check FAILS lease BUG_REFUSE_BY_UID "-DBUG_REFUSE_BY_UID -DLIAR $(only DOUBLED)" "$safe" "$plain"
check FAILS lease BUG_SECOND_IS_GUILTY "-DBUG_SECOND_IS_GUILTY -DLIAR $(only SILENT)" "$safe" "$plain"
w() { echo "$quiet" | sed "s/-DN_$1=0/-DN_$1=1/"; }
check HOLDS weights "no fault" "-DNV=3 $quiet" "$safe" "$plain"
check HOLDS weights "publisher dies" "-DNV=2 $(w PUBLISHER)" "$safe" "$plain"
check HOLDS weights "coordinator dies" "-DNV=3 $(w COORDINATOR)" "$safe" "$plain"
check HOLDS weights "receiver dies" "-DNV=3 $(w RECEIVER)" "$safe" "$plain"
check HOLDS weights "doubled, harmed" "-DNV=2 $(w DOUBLED | sed s/HARMED=0/HARMED=1/)" "$safe" "$plain"
check FAILS weights BUG_ANNOUNCE_BEFORE_DURABLE "-DBUG_ANNOUNCE_BEFORE_DURABLE $quiet" "$safe" "$plain"
check FAILS weights BUG_NO_HASH "-DBUG_NO_HASH $quiet" "$safe" "$plain"
check FAILS weights BUG_IN_PLACE "-DBUG_IN_PLACE $quiet" "$safe" "$plain"

if [ -n "$soak" ]; then
    calm="-DLIVE -DCAP=6 -DN_SWAPPED=0" # room for all that is said: nothing is lost by fullness
    check HOLDS lease "live, no fault" "$calm $none" "$live" "$fair"
    for fault in COORDINATOR WORKER SILENT TRAINER DOUBLED LOST; do
        check HOLDS lease "live, one of $fault" "$calm $(only $fault)" "$live" "$fair"
    done
    check HOLDS weights "live, no fault" "-DLIVE -DNV=2 -DN_SWAPPED=0 $quiet" "$live" "$fair"
    for fault in PUBLISHER COORDINATOR RECEIVER DOUBLED LOST HARMED; do
        check HOLDS weights "live, one of $fault" "-DLIVE -DNV=2 -DN_SWAPPED=1 $(w $fault)" "$live" "$fair"
    done
    check HOLDS weights "live, all faults" "-DLIVE -DNV=2 -DN_DOUBLED=1 -DN_LOST=1" "$live" "$fair"
    check HOLDS lease "two samples, all faults" "-DNS=2 -DLIAR" "$bits" "-m200000 -w30"
    check HOLDS weights "all faults" "" "$bits" "-m1000000 -w30"
fi
[ "$surprises" = 0 ] || { echo "$0: $surprises surprises" >&2; exit 1; }
