#!/bin/sh
# Three shell jobs, started in the wrong order, run in the right one.
#
#     sh examples/steps.sh
#
# `fencectl wait NAME@N` returns when the point signals, and `fencectl advance NAME N` signals it.
set -eu

name="steps-$$"
folder=$(mktemp -d)
mkfifo "$folder/ready" "$folder/end"

# A timeline lives as long as somebody holds it.  This process does, until its standard input ends; if
# the script dies, so does the timeline, and whoever waits is told.
"${PYTHON:-python3}" -c '
import sys
import fencebroker as fb
with fb.connect() as broker, broker.create_timeline(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
' "$name" <"$folder/end" >"$folder/ready" &
exec 3>"$folder/end"
trap 'exec 3>&-; wait; rm -r "$folder"' EXIT
read -r _ <"$folder/ready"

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

publish 3>&- &
sort_words 3>&- &
fetch
fencectl wait "$name@3" --timeout 10
