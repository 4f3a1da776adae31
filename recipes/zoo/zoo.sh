#!/bin/sh
# Trains the decoders of recipes/zoo one after the other, counts their clicks on objects that none of them has seen, and
# writes the table: OUT/table.md.
#   recipes/zoo/zoo.sh DATA          DATA: the folder with the photographs
# Environment variables: ROWS, TEST (separated by spaces), OUT, TRAIN and EVALUATE (options of the two commands).
# Rerun the same command to resume: finished trainings and evaluations are skipped.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
data=${1:-}
if [ ! -d "$data" ]; then
    echo "zoo.sh: '$data' is no folder; give the one with the photographs: make zoo DATA=folder" >&2
    exit 2
fi
all=$(cd "$here" && for file in *.yaml; do echo "${file%.yaml}"; done | grep -vx base)
: "${ROWS:=$all}" "${OUT:=runs/zoo}" "${TRAIN:=--workers 1}" "${EVALUATE:=--protocol fast --workers 1}"
: "${TEST:=voc10_coseg:held=0.02 coco_subsets:held=0.02 bsds500:held=0.05 lara2018_leaf:held=0.1 \
davis16_train:held=0.05,group=(.+)_\d+\$ shark pallet}"
set -f # a group of a dataset is not a file name pattern

sets=
for dataset in $TEST; do sets="$sets --dataset $dataset"; done
for row in $ROWS; do
    folder=$OUT/$row
    mkdir -p "$folder"
    if [ ! -f "$folder/train.done" ]; then
        echo "zoo.sh: $row: training" >&2
        # shellcheck disable=SC2086  # lists of words
        hrseg train --recipe "zoo/$row" --root "$data" --out "$folder/train" $TRAIN
        : >"$folder/train.done"
    fi
    # The last weights, not the best: those would be chosen by held-out objects.
    if [ ! -f "$folder/judged.done" ]; then
        echo "zoo.sh: $row: evaluation" >&2
        # shellcheck disable=SC2086
        hrseg evaluate --model "$folder/train/last.safetensors" --root "$data" $sets --metric iou --metric biou $EVALUATE \
            --out "$folder/judged"
        : >"$folder/judged.done"
    fi
done

set --
for row in $ROWS; do set -- "$@" "$row=$OUT/$row/judged"; done
hrseg report "$@" --measure NoC@80 --measure NoC@85 --measure NoC@90 --measure NoF@90 --plot "$OUT/curves.png" \
    --out "$OUT/table.md"
echo "zoo.sh: $OUT/table.md" >&2
