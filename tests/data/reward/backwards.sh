#!/bin/sh
# backwards.sh - a reward command of the tests: answers every two requests in the other order.
id_of() { i=${1#*\"id\":} && echo "${i%%,*}"; }
while IFS= read -r first && IFS= read -r second; do
    echo "{\"id\":$(id_of "$second"),\"score\":2}"
    echo "{\"id\":$(id_of "$first"),\"score\":1}"
done
