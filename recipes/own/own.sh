#!/bin/sh
# Which adapter saves clicks on your own pictures? Adapts a model with each adapter to one part of a folder, counts the
# clicks of the base and of each adapter on the other part, and writes OUT/table.md, OUT/compared.md and OUT/runs.zip.
#   recipes/own/own.sh DATA          DATA: a folder with images/ and masks/, or any other dataset of hrseg evaluate
# Environment variables: SHARE (of the pictures, chosen by a hash of their names, that are only evaluated on; default 0.5),
# ROWS (separated by spaces), BASE, OUT, TRAIN and EVALUATE (options of the two commands).
# Rerun the same command to resume: finished trainings and evaluations are skipped.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
. "$here/../once.sh"
data=${1:-}
if [ -z "$data" ]; then
    echo "own.sh: give your folder with images/ and masks/: make own DATA=folder" >&2
    exit 2
fi
name=$(basename "${data%%:*}")
: "${ROWS:=base lora conv pointrend head bn bitfit full}" "${SHARE:=0.5}" "${BASE:=clicknet_m}" "${OUT:=runs/own-$name}"
: "${TRAIN:=--workers 0}" "${EVALUATE:=--protocol fast --workers 1}"
set -f # lists such as [512,512] are not file name patterns
case $data in *:*) join=, ;; *) join=: ;; esac

set --
for row in $ROWS; do
    folder=$OUT/$row/0
    mkdir -p "$folder"
    model=$BASE
    if [ "$row" != base ]; then
        changes=
        case $row in # conv works at twice the resolution; full changes weights that are trained already
        conv) changes="--set data.crop=[512,512] --set data.min_area=600 --set data.augment.scale=[1,3] \
--set data.augment.zoom_limit=6" ;;
        full) changes='--set optim.lr=1e-4' ;;
        esac
        # shellcheck disable=SC2086  # lists of words
        once "$folder/train.done" hrseg adapt --from "$BASE" --adapter "$row" --recipe adapt_own \
            --dataset "$data${join}kept=$SHARE" $changes $TRAIN --out "$folder/train"
        # The last weights: the other pictures choose nothing.
        model=$BASE+$folder/train/last.safetensors
    fi
    # shellcheck disable=SC2086
    once "$folder/others.done" hrseg evaluate --model "$model" --dataset "$data${join}held=$SHARE" --metric iou \
        --metric biou $EVALUATE --out "$folder/others"
    set -- "$@" "$row=$folder/others"
done

hrseg report "$@" --measure NoC@80 --measure NoC@85 --measure NoC@90 --measure NoF@90 --measure mean@1 \
    --out "$OUT/table.md"
hrseg report --tables own "$OUT" --out "$OUT/compared.md" --pack "$OUT/runs.zip"
echo "own.sh: $OUT/table.md, compared.md and runs.zip" >&2
