"""recipes/vit: vit.sh trains the base, then the rows, and resumes; each stage starts from the one before."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from hrseg_cli.recipe import data_folder, load_recipe

PLACE = data_folder("recipes") / "vit"
HRSEG = """#!/bin/sh
echo "$*" >>calls
[ "$(wc -l <calls)" != 3 ] || exit 130 # as if Ctrl-C
for word; do
    if [ "${last-}" = --out ]; then out=$word; fi
    last=$word
done
case $1 in train | adapt) mkdir -p "$out" && echo weights >"$out/best.safetensors" ;; esac
"""


def vit(tmp_path: Path, data: str = ".") -> subprocess.CompletedProcess[str]:
    """Run vit.sh with a hrseg that only notes what it was asked for, and is stopped once."""
    (tmp_path / "hrseg").write_text(HRSEG)
    (tmp_path / "hrseg").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": "out"}
    return subprocess.run([PLACE / "vit.sh", data], cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_each_stage_starts_from_the_one_before(tmp_path: Path) -> None:
    assert vit(tmp_path).returncode == 130
    done = vit(tmp_path)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("train --recipe vit/distil --root .")
    assert "train --recipe vit/clicks --set model.weights=out/distil/best.safetensors" in calls[1]
    path = "adapt --from out/clicks/best.safetensors --recipe vit/path"
    assert [path in call for call in calls[2:4]] == [True, True]  # stopped, then again
    rows = {call.split("paper/t5_")[1].split()[0]: call for call in calls[4:] if call.startswith("adapt")}
    assert set(rows) == {"lora", "toast", "toast_lite", "head", "full"}
    for row, call in rows.items():
        start = "out/clicks/best.safetensors" + "+out/path/best.safetensors" * row.startswith("toast")
        assert f"adapt --from {start} --recipe" in call
    judged = [call for call in calls if call.startswith("evaluate")]
    assert len(judged) == 2 * 6
    assert "--model out/clicks/best.safetensors+out/path/best.safetensors+out/tables/t5_toast/0/" in "\n".join(judged)
    assert vit(tmp_path).returncode == 0
    again = (tmp_path / "calls").read_text().splitlines()[len(calls) :]
    assert all(call.startswith("report") for call in again), "finished runs were repeated"


def test_rows_fit_their_recipes_and_are_tested_on_what_no_stage_saw() -> None:
    show = (
        f'set -euf; here={PLACE.parent}/paper; . {PLACE}/rows.env; printf "%s\\0" "$CHANGES" "$TRAIN_HIGH" "$EVALUATE"'
    )
    done = subprocess.run(["sh", "-c", show], capture_output=True, text=True, check=True)
    changes, parts, evaluate = done.stdout.split("\0")[:3]
    row = load_recipe("paper/t5_toast", [*changes.split(), f"data.parts={parts}"])
    target = row.data.crop[0]
    assert f"zoom.target={target} " in evaluate
    for name in ("vit/distil", "vit/clicks", "vit/path"):
        stage = load_recipe(name)
        assert stage.data.held_out == 0.1  # the tests lie in this share, by the same groups
        assert {part.dataset: part.group for part in stage.data.parts}["davis16_train"] == r"(.+)_\d+$"


def test_without_a_folder_it_says_what_to_type(tmp_path: Path) -> None:
    done = vit(tmp_path, "nowhere")
    assert done.returncode == 2
    assert "make vit DATA=folder" in done.stderr
