#!/bin/sh
# Reproduces tables 3 and 4 of the adapter paper: trains and evaluates each row, then writes tables.md and tables.tex.
#   recipes/paper/tables.sh [DATA]   DATA: paper, photos, or the path of a file like recipes/paper/data/photos.env
# Environment variables: TABLES (adapters or transformers, table 5), ROWS and SEEDS (separated by spaces), OUT, DEVICE, BASE, PARTS (default "train judge"), EVALUATE
# (options of hrseg evaluate that change results, such as --precision bf16), TRAIN_ON and EVALUATE_ON (options of the
# machine that do not change results, such as --workers 4).
# With TABLES=transformers, TOAST_PATH is the file of a pretuned feedback path (recipe toast_pretune), if there is one.
# Rerun the same command to resume, also on another machine: finished steps are skipped. Several processes may work on
# different ROWS with the same OUT. OUT/ROW/SEED/ contains the run folders.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
recipes=$(cat "$here"/../*.yaml "$here"/../protocols/*.yaml "$here"/*.yaml | cksum)
set -f # lists such as [128,192] are not file name patterns

prepare() { :; } # replaced by a choice of data that makes some of it
data=${1:-paper}
case $data in
*.env) file=$data ;;
*) file=$here/data/$data.env ;;
esac
if [ ! -f "$file" ]; then
    echo "tables.sh: $data: no such choice of data; take paper, photos, or the path of an .env file" >&2
    exit 2
fi
case $file in
*/*) . "$file" ;;
*) . "./$file" ;;
esac

: "${TABLES:=adapters}"
case $TABLES in
transformers) : "${ROWS:=base t5_lora t5_toast t5_toast_lite t5_head t5_full}" ;;
esac
: "${ROWS:=base t3_lora t3_lora_hq t3_lora_hq_boundary t4_conv t4_conv_hq t4_conv_hq_skip t4_conv_hq_skip_boundary_sobel \
t4_conv_hq_skip_boundary control_full control_head control_bn control_bitfit adapt_conv}"
: "${SEEDS:=0}" "${OUT:=runs/tables/$(basename "$data" .env)}" "${DEVICE:=cpu}" "${PARTS:=train judge}"

# once STAMP FILE MACHINE COMMAND...: runs the command, with the MACHINE options, unless the stamp says that this command
# has already finished on this file.
once() {
    stamp=$1 machine=$3
    key="$recipes $(cksum <"$2")"
    shift 3
    key="$key $*"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then return; fi
    echo "tables.sh: ${stamp%.done}" >&2
    # shellcheck disable=SC2086  # a list of words
    "$@" --device "$DEVICE" $machine
    printf '%s\n' "$key" >"$stamp"
}

# train ROW FOLDER SEED MODEL: adapts the model, into FOLDER/train.
train() {
    from=$4 recipe=$1 parts=$TRAIN_HIGH changes=$CHANGES folder=$2
    if [ -f "$here/$1.yaml" ]; then recipe=paper/$1; fi
    case $1 in
    t3_lora | t4_conv) parts=$TRAIN_REGULAR ;;
    esac
    case $1 in
    *conv*) changes="$CHANGES $CHANGES_CONV" ;;
    esac
    set -- --set "seed=$3"
    if [ -n "$parts" ]; then set -- "$@" --set "data.parts=$parts"; fi
    for change in $changes; do set -- "$@" --set "$change"; done
    once "$folder/train.done" "$base" "$TRAIN_ON" hrseg adapt --from "$from" --recipe "$recipe" "$@" --out "$folder/train"
}

# judge MODEL FILE FOLDER: evaluates into FOLDER/regular and FOLDER/high. FILE: the file of the model, for stamps.
judge() {
    model=$1 weights=$2 folder=$3
    for set in regular high; do
        case $set in
        regular) datasets=$TEST_REGULAR ;;
        high) datasets=$TEST_HIGH ;;
        esac
        set --
        for dataset in $datasets; do set -- "$@" --dataset "$dataset"; done
        # shellcheck disable=SC2086
        once "$folder/$set.done" "$weights" "$EVALUATE_ON" hrseg evaluate --model "$model" "$@" --metric iou \
            --metric biou $EVALUATE --out "$folder/$set"
    done
}

base=$BASE
if [ ! -f "$base" ]; then base=$here/../../hrseg_cli/weights/$BASE.safetensors; fi # in a checkout
if [ ! -f "$base" ]; then base=$here/../../weights/$BASE.safetensors; fi           # where hrseg is installed
if [ ! -f "$base" ]; then
    echo "tables.sh: BASE=$BASE: no such checkpoint; give the path of one" >&2
    exit 2
fi

prepare

for row in $ROWS; do
    if [ "$row" = base ]; then
        mkdir -p "$OUT/base/0"
        case $PARTS in *judge*) judge "$BASE" "$base" "$OUT/base/0" ;; esac
        continue
    fi
    start=$BASE
    case $row in t5_toast*) start=$BASE${TOAST_PATH:+"+$TOAST_PATH"} ;; esac
    for seed in $SEEDS; do
        folder=$OUT/$row/$seed
        mkdir -p "$folder"
        adapter=$folder/train/best.safetensors
        case $PARTS in *train*) train "$row" "$folder" "$seed" "$start" ;; esac
        case $PARTS in *judge*) judge "$start+$adapter" "$adapter" "$folder" ;; esac
    done
done

case $PARTS in *judge*) ;; *) exit 0 ;; esac
for format in md tex; do
    hrseg report --tables "$TABLES" "$OUT" --format "$format" --out "$OUT/tables.$format" --pack "$OUT/tables.zip"
done
echo "tables.sh: $OUT/tables.md, .tex and .zip" >&2
