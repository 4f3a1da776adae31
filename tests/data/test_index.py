"""The index: what is broken is named, and a fresh one spares opening index masks without changing anything."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrseg_cli.data import samples
from hrseg_cli.data.index import build_index
from hrseg_cli.data.samples import open_dataset
from hrseg_cli.errors import HrsegError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images with index masks: two objects, void and one object, background only."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for stem, ids in {"a": (3, 12), "b": (255, 1), "c": ()}.items():
        mask = np.zeros((10, 16), np.uint8)
        for k, value in enumerate(ids):
            mask[2 + 4 * k : 4 + 4 * k, 3:9] = value
        Image.fromarray(mask).save(tmp_path / f"masks/{stem}.png")
        Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / f"images/{stem}.jpg")
    return tmp_path


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_per_object_in_dataset_order(folder: Path) -> None:
    seen = []
    summary = build_index(folder, instances=True, progress=lambda done, total: seen.append((done, total)))
    assert (summary.images, summary.objects, summary.problems) == (2, 3, [])
    assert summary.rules == {"instance": 3}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    head, *objects = lines(folder / "index.jsonl")
    assert head["version"] == 1
    assert [line["id"] for line in objects] == [ref.id for ref in open_dataset(str(folder), instances=True)]
    assert objects[2] == {
        "id": "b#1",
        "image": "images/b.jpg",
        "mask": "masks/b.png",
        "instance": 1,
        "height": 10,
        "width": 16,
        "area": 12,
        "void": 12,
        "rule": "instance",
    }


def test_a_fresh_index_spares_opening_masks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = open_dataset(str(folder), instances=True)
    build_index(folder, instances=True)
    opened = []

    def read_mask(path: Path) -> samples.MaskPixels:
        opened.append(path.name)
        return samples.MaskPixels(np.zeros((10, 16), np.uint8))

    monkeypatch.setattr(samples, "read_mask", read_mask)
    assert open_dataset(str(folder), instances=True) == without
    assert opened == ["c.png"]  # a mask without objects has no line


@pytest.mark.parametrize("damage", ["changed mask", "new file", "touched", "torn", "not json", "empty"])
def test_a_stale_or_damaged_index_is_ignored(folder: Path, damage: str) -> None:
    index = build_index(folder, instances=True).path
    expected = ["a#3", "a#12", "b#1"]
    if damage == "changed mask":
        Image.fromarray(np.full((10, 16), 9, np.uint8)).save(folder / "masks/a.png")
        expected = ["a#9", "b#1"]
    elif damage == "new file":
        (folder / "images/a.jpg").rename(folder / "images/d.jpg")
        (folder / "masks/a.png").rename(folder / "masks/d.png")
        expected = ["b#1", "d#3", "d#12"]
    elif damage == "touched":
        os.utime(folder / "masks/a.png", ns=(1, 1))
        index.write_text(index.read_text().replace('"instance": 12', '"instance": 99'))
    elif damage == "torn":
        index.write_text(index.read_text()[:-30])
    else:
        index.write_text("" if damage == "empty" else "]\n")
    assert [ref.id for ref in open_dataset(str(folder), instances=True)] == expected


def test_broken_files_are_each_one_line_and_the_good_are_kept(folder: Path) -> None:
    for stem in ("cut", "size", "void", "ok"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 16, 3), np.uint8)).save(
            folder / f"images/{stem}.png"
        )
        mask = np.full((10, 15 if stem == "size" else 16), 128 if stem == "void" else 255, np.uint8)
        Image.fromarray(mask).save(folder / f"masks/{stem}.png")
    cut = folder / "images/cut.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "masks/c.png").write_bytes(b"")
    summary = build_index(folder, binarize="void128", workers=2)
    broken = {"a": "no object pixel", "b": None, "c": "an empty file", "cut": "cannot be read", "size": "15x10"}
    broken["void"] = "no object pixel"
    expected = [(stem, reason) for stem, reason in broken.items() if reason]
    assert len(summary.problems) == len(expected)
    for problem, (stem, reason) in zip(summary.problems, expected, strict=True):
        assert f"{stem}.png" in problem
        assert reason in problem
        assert "\n" not in problem
    assert [line["id"] for line in lines(summary.path)[1:]] == ["b", "ok"]


def test_an_index_never_hides_an_object(folder: Path) -> None:
    """An object lost under another mask's void stays in the dataset, so that loading it names the fault."""
    void = np.zeros((10, 16), np.uint8)
    void[0:5], void[9] = 255, 2
    Image.fromarray(void).save(folder / "masks/a_1.png")
    without = [ref.id for ref in open_dataset(str(folder), instances=True)]
    summary = build_index(folder, instances=True)
    assert len(summary.problems) == 1
    assert "id 3" in summary.problems[0]
    assert [ref.id for ref in open_dataset(str(folder), instances=True)] == without == ["a#3", "a#12", "a_1#2", "b#1"]


def test_a_folder_that_cannot_be_written_is_indexed_elsewhere(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "index.jsonl"
    before = sorted(folder.rglob("*"))
    assert build_index(folder, instances=True, out=out).path == out
    assert [path for path in sorted(folder.rglob("*")) if out.parent not in (path, *path.parents)] == before
    assert lines(out)[1]["mask"] == "masks/a.png"
    (folder / "file").write_text("")
    with pytest.raises(HrsegError, match="--out"):
        build_index(folder, instances=True, out=folder / "file" / "index.jsonl")


def test_the_embedded_set_has_nothing_to_index() -> None:
    with pytest.raises(HrsegError, match="nothing to index"):
        build_index("procedural:count=1")
