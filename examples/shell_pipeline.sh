#!/bin/sh
# A producer and a consumer that are shell scripts, with two files between them that are used again and again.
#
#     sh examples/shell_pipeline.sh
#
# frames@N signals when picture N is written, and released@N when it has been read, so that its file may be written again.  Nothing is
# sent and nothing is asked again and again: both sides know the names of the points.
set -eu

frames="frames-$$" released="released-$$" last=6
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

# Picture N lies in file N % 2.  Before it is written, the picture before it in that file has been read: released@(N-2).
produce() {
    n=1
    while [ "$n" -le "$last" ]; do
        file="$folder/$((n % 2))"
        fencectl run --wait "$released@$((n > 2 ? n - 2 : 0))" --signal "$frames@$n" -- \
            sh -c 'seq "$1" "$(($1 * 1000))" >"$2"' draw "$n" "$file"
        n=$((n + 1))
    done
}

consume() {
    n=1
    while [ "$n" -le "$last" ]; do
        file="$folder/$((n % 2))"
        fencectl run --wait "$frames@$n" --signal "$released@$n" -- \
            sh -c 'echo "picture $1: $(wc -l <"$2") lines, from $(head -n 1 "$2") to $(tail -n 1 "$2")"' read "$n" "$file"
        n=$((n + 1))
    done
}

# The producer owns both timelines, and ends when the last picture was read.  If it dies before, both end, and the consumer is told.
(
    fencectl create "$frames" >/dev/null &
    fencectl create "$released" >/dev/null &
    fencectl wait "$frames@0" "$released@0"
    produce
    fencectl wait "$released@$last"
) &
producer=$!
(
    fencectl wait "$frames@0" "$released@0"
    consume
) &
consumer=$!
wait "$producer"
wait "$consumer"
