"""hrseg list: every name that can be typed, with what a person wants to know before using it."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from hrseg_cli import catalog
from hrseg_cli.checkpoints.manifests import model_manifest_names
from hrseg_cli.commands.names import KINDS, WEIGHTS, about
from hrseg_cli.data.manifest import load_manifest, manifest_names
from hrseg_cli.recipe import protocol_names, recipe_names

Command = Callable[..., Any]
NAMES = {
    "models": list(catalog.MODELS),
    "prefixes": list(catalog.PREFIXES),
    "weights": [*(path.stem for path in sorted(WEIGHTS.glob("*.safetensors"))), *model_manifest_names()],
    "datasets": [*manifest_names(), "procedural", "samples"],
    "protocols": protocol_names(),
    "recipes": recipe_names(),
    "adapters": list(catalog.ADAPTERS),
    "refiners": list(catalog.REFINERS),
    "losses": list(catalog.LOSSES),
    "metrics": list(catalog.METRICS),
    "layouts": list(catalog.LAYOUTS),
}


def rows(hrseg: Command, kind: str, *words: object) -> list[dict[str, str]]:
    done = hrseg("list", kind, "--format", "json", *words)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_name_is_a_line_that_says_what_it_is(hrseg: Command, tmp_path: Path, kind: str) -> None:
    found = rows(hrseg, kind, "--root", tmp_path)
    assert [next(iter(row.values())) for row in found] == NAMES[kind]
    assert all(value.strip() for row in found for value in row.values())
    lines = hrseg("list", kind, "--root", tmp_path).out.splitlines()
    assert len(lines) == 1 + len(found)
    start = lines[0].index(list(found[0])[1])
    assert all(line[start - 1] == " " != line[start] for line in lines), "columns are not aligned"


def test_weights_come_with_their_terms(hrseg: Command) -> None:
    found = rows(hrseg, "weights")
    assert [row["model"] for row in found if row["default"] == "yes"] == [catalog.DEFAULT_MODEL]
    (h18s,) = [row for row in found if row["model"] == "h18s"]
    assert "research" in h18s["terms"]
    assert "photographs" in h18s["trained on"]
    with safe_open(WEIGHTS / "h18s.safetensors", "np") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if "running" not in key]  # noqa: SIM118
    assert h18s["parameters"] == f"{sum(map(math.prod, shapes)) / 1e6:.1f} M"
    assert all("unknown" not in row.values() for row in rows(hrseg, "weights")), "a card (NAME.yaml) is missing"


def test_datasets_say_whether_they_are_there(hrseg: Command, tmp_path: Path) -> None:
    before = {row["dataset"]: row for row in rows(hrseg, "datasets", "--root", tmp_path)}
    assert before["berkeley"]["present"] == "no"
    assert before["berkeley"]["source"].startswith("http")
    split = load_manifest("berkeley").splits["val"]
    image = tmp_path / split.folder / split.images.replace("*", "a", 1).replace("*", "jpg")
    image.parent.mkdir(parents=True)
    image.touch()
    after = {row["dataset"]: row for row in rows(hrseg, "datasets", "--root", tmp_path)}
    assert after["berkeley"]["present"] == "partial"
    old = hrseg("prepare-data", "--list", "--root", tmp_path)
    assert old.out == hrseg("list", "datasets", "--root", tmp_path).out


def test_formats_hold_the_same_texts(hrseg: Command) -> None:
    wanted = [list(row.values()) for row in rows(hrseg, "adapters")]
    assert list(csv.reader(io.StringIO(hrseg("list", "adapters", "--format", "csv").out)))[1:] == wanted
    table = hrseg("list", "adapters", "--format", "md").out.splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]] == wanted
    assert "lora & LoRA" in hrseg("list", "adapters", "--format", "tex").out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["modles"], "unknown kind 'modles'. Did you mean 'models'?"),
        (["dataset"], "Did you mean 'datasets'?"),
        (["models", "--format", "jsn"], "Did you mean 'json'?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(hrseg: Command, words: list[str], told: str) -> None:
    done = hrseg("list", *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert told in done.err


def test_without_a_kind_the_kinds_are_listed(hrseg: Command) -> None:
    assert [line.split()[0] for line in hrseg("list").out.splitlines()[1:]] == list(KINDS)


def test_nothing_slow_is_imported() -> None:
    code = (
        "import sys; from hrseg_cli.commands.names import list_names\n"
        "for kind in sys.argv[1:]: list_names(kind)\n"
        "slow = {'torch', 'cv2', 'numpy', 'pandas', 'rich'} & sys.modules.keys()\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code, *KINDS], check=True, capture_output=True)


def test_a_sentence_ends_where_it_ends() -> None:
    assert about("hrseg_cli.adapters.controls:bitfit") == "Control: train the biases only (BitFit)"
    assert about("hrseg_cli.models.clicknet:ClickNet").startswith(
        "Click network on EfficientNet-Lite"
    )  # imported there
    assert about("json:nothing") == about("sys:path") == ""
