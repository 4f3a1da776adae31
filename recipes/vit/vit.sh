#!/bin/sh
# What do adapters make of a small Vision Transformer? Distils the default network into SimpleClick-xtiny, teaches it to
# click, trains TOAST's feedback path, then each row of the table, and writes OUT/tables/tables.md, .tex and .zip.
#   recipes/vit/vit.sh DATA          DATA: the folder with the photographs
# Environment variables: OUT; ROWS and SEEDS of recipes/paper/tables.sh.
# Rerun the same command to resume: finished stages are skipped, and an interrupted one continues.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
. "$here/../once.sh"
data=${1:-}
if [ ! -d "$data" ]; then
    echo "vit.sh: '$data' is no folder; give the one with the photographs: make vit DATA=folder" >&2
    exit 2
fi
: "${OUT:=runs/vit}"
mkdir -p "$OUT"

# stage NAME COMMAND...: runs the command, unless it has finished before.
stage() {
    name=$1
    shift
    once "$OUT/$name.done" "$@" --root "$data" --workers 0 --out "$OUT/$name"
}

stage distil hrseg train --recipe vit/distil
stage clicks hrseg train --recipe vit/clicks --set "model.weights=$OUT/distil/best.safetensors"
stage path hrseg adapt --from "$OUT/clicks/best.safetensors" --recipe vit/path

export TABLES=transformers BASE="$OUT/clicks/best.safetensors" TOAST_PATH="$OUT/path/best.safetensors"
HRSEG_DATA=$data OUT="$OUT/tables" "$here/../paper/tables.sh" "$here/rows.env"
