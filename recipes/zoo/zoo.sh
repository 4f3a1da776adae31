#!/bin/sh
# Trains the decoders of recipes/zoo one after the other, counts their clicks and those of models without training on
# objects that none of them has seen, and writes OUT/table.md, OUT/compared.md, OUT/curves.png and OUT/runs.zip.
#   recipes/zoo/zoo.sh DATA          DATA: the folder with the photographs
# Environment variables: ROWS (recipes of recipes/zoo, and models that come with hrseg), TEST (datasets), both separated by
# spaces; OUT, TRAIN and EVALUATE (options of the two commands).
# Rerun the same command to resume: finished trainings and evaluations are skipped.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
. "$here/../once.sh"
data=${1:-}
if [ ! -d "$data" ]; then
    echo "zoo.sh: '$data' is no folder; give the one with the photographs: make zoo DATA=folder" >&2
    exit 2
fi
all=$(cd "$here" && for file in *.yaml; do echo "${file%.yaml}"; done | grep -vx base)
known="clicknet_m grabcut kmeans mean_shift slic felzenszwalb random_walker watershed"
: "${ROWS:=$known $all}" "${OUT:=runs/zoo}" "${TRAIN:=--workers 1}" "${EVALUATE:=--protocol fast --limit 20 --workers 1}"
: "${TEST:=voc10_coseg:held=0.02 coco_subsets:held=0.02 bsds500:held=0.05 lara2018_leaf:held=0.1 \
davis16_train:held=0.05,group=(.+)_\d+\$ shark pallet}"
set -f # a group of a dataset is not a file name pattern

sets=
for dataset in $TEST; do sets="$sets --dataset $dataset"; done

set --
for row in $ROWS; do
    folder=$OUT/$row/0
    mkdir -p "$folder"
    model=$row
    if [ -f "$here/$row.yaml" ]; then
        # shellcheck disable=SC2086  # lists of words
        once "$folder/train.done" hrseg train --recipe "zoo/$row" --root "$data" --out "$folder/train" $TRAIN
        # The last weights, not the best: those would be chosen by held-out objects.
        model=$folder/train/last.safetensors
    fi
    # shellcheck disable=SC2086
    once "$folder/held.done" hrseg evaluate --model "$model" --root "$data" $sets --metric iou --metric biou $EVALUATE \
        --out "$folder/held"
    set -- "$@" "$row=$folder/held"
done

hrseg report "$@" --measure NoC@80 --measure NoC@85 --measure NoC@90 --measure NoF@90 --plot "$OUT/curves.png" \
    --out "$OUT/table.md"
hrseg report --tables zoo "$OUT" --out "$OUT/compared.md" --pack "$OUT/runs.zip"
echo "zoo.sh: $OUT/table.md, compared.md, curves.png and runs.zip" >&2
