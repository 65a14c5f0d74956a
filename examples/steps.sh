#!/bin/sh
# Three shell jobs, started in the wrong order, run in the right one.
#
#     sh examples/steps.sh
#
# `fencectl create NAME` holds a timeline, `fencectl wait NAME@N` returns when the point signals, `fencectl advance NAME N` signals it.
set -eu

name="steps-$$"
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

# A timeline lives as long as somebody holds it.  `create` does, as long as this script lives; if the script dies, so does the
# timeline, and whoever waits is told.
fencectl create "$name" >/dev/null &
fencectl wait "$name@0" --timeout 10

publish() {
    fencectl wait "$name@2" --timeout 10
    echo "published: $(cat "$folder/sorted" | tr '\n' ' ')"
    fencectl advance "$name" 3
}

sort_words() {
    fencectl wait "$name@1" --timeout 10
    sort "$folder/words" >"$folder/sorted"
    echo "sorted"
    fencectl advance "$name" 2
}

fetch() {
    printf 'seqno\nfence\nmerge\n' >"$folder/words"
    echo "fetched"
    fencectl advance "$name" 1
}

publish &
sort_words &
fetch
fencectl wait "$name@3" --timeout 10
