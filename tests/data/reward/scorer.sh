#!/bin/sh
# scorer.sh DIR - a reward command of the tests: a solution that is a number is its own score, a
# word is a fault to commit.  "...-once": only the first time, remembered in DIR.
dir=$1
echo $$ >"$dir/pid"
once() { mkdir "$dir/$word" 2>/dev/null; }
limit() { v=$(ulimit "$1") && [ "$v" != unlimited ] && echo "$v" || echo -1; }
while IFS= read -r line; do
    id=${line#*\"id\":}
    id=${id%%,*}
    word=${line#*\"solution_str\":\"}
    word=${word%%\"*}
    score=1
    case $word in
    [0-9-]*) score=$word ;;
    hang) sleep 1000 ;;
    hang-once) once && sleep 1000 ;;
    slow) sleep 0.2 ;;
    crash) exit 3 ;;
    segv) kill -SEGV $$ ;;
    killed-once) once && kill -KILL $$ ;;
    fork)
        sleep 1000 >"$dir/fifo" &
        echo "{\"id\":$id,\"score\":1}"
        sleep 1000
        ;;
    error) echo "{\"id\":$id,\"error\":\"no such thing\"}" && continue ;;
    error-once) once && echo "{\"id\":$id,\"error\":\"not now\"}" && continue ;;
    nan) score=NaN ;;
    inf) score=-Infinity ;;
    huge) score=1e39 ;;
    none) echo "{\"id\":$id}" && continue ;;
    true) score=true ;;
    alias) echo "{\"id\":$id,\"reward\":0.5,\"more\":{\"a\":[1,\"}\"]}}" && continue ;;
    garbage)
        printf 'hello\n\n{"id":\n[]\n{"id":987654321,"score":7}\n{"id":%s,"score":7} x\n' "$id"
        printf '\033[2J\n\000\377\n{"id":%s.5,"score":7}\n' "$id"
        ;;
    twice) echo "{\"id\":$id,\"score\":1}" ;;
    long-line) head -c 100000 /dev/zero | tr '\000' a && echo ;;
    flood) yes 'not a reply' ;;
    flood-line) cat /dev/zero ;;
    stderr)
        printf '\033[31mred\n' >&2
        yes 'what a noise' | head -n 20000 >&2
        ;;
    limit-v) score=$(limit -v) ;;
    limit-c) score=$(limit -c) ;;
    limit-n) score=$(limit -n) ;;
    has-fd-77) [ -e /proc/$$/fd/77 ] || score=0 ;;
    cpus) score=$(env -u OMP_NUM_THREADS nproc) ;;
    signals) # 32 and 33 are the C library's own: GNU make leaves one of them ignored
        score=0
        for s in $(sed -nE 's/^Sig(Blk|Ign):[[:space:]]*//p' /proc/self/status); do
            [ $((0x$s & ~0x180000000)) -eq 0 ] || score=1
        done
        ;;
    esac
    echo "{\"id\":$id,\"score\":$score}"
done
