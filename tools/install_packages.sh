#!/bin/sh
# install_packages.sh build|test|fuzz - the Debian packages that a target needs, installed when they
# are missing: as root or by sudo; otherwise the exact command is printed.
set -eu

build="cmake pkg-config make gcc libc6-dev libfyaml-dev libjansson-dev libpcre2-dev libxxhash-dev libzstd-dev libzmq3-dev libmsgpack-dev libsodium-dev libisal-dev libmicrohttpd-dev libjs-chart.js"
case "${1:-build}" in
build) wanted="$build" ;;
test) wanted="$build libcriterion-dev zstd python3 strace spin iproute2" ;;
fuzz) wanted="$build clang libclang-rt-14-dev" ;;
bench) wanted="$build libdnnl-dev ocl-icd-opencl-dev" ;;
model) wanted="python3 python3-pip" ;;
*) echo "usage: $0 build|test|fuzz|bench|model" >&2; exit 64 ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "not a Debian system: install the counterparts of: $wanted" >&2
    exit 0
fi
missing=""
for p in $wanted; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

command="apt-get install -y --no-install-recommends$missing"
as=""
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as="sudo"
    elif command -v sudo >/dev/null 2>&1 && [ -t 0 ]; then
        as="sudo"
    else
        echo "packages are missing; as root, run:" >&2
        echo "    apt-get update && $command" >&2
        exit 69
    fi
fi
echo "installing:$missing"
log=$(mktemp)
# shellcheck disable=SC2086
if ! { $as apt-get update && DEBIAN_FRONTEND=noninteractive $as $command; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "the packages could not be installed; by hand: apt-get update && $command" >&2
    exit 69
fi
rm -f "$log"
