"""hrseg refine: existing masks in, better masks of the same form out, and nothing lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_photos import photograph, truth

import hrseg_cli
from hrseg_cli.data.masks_out import run_lengths

Command = Callable[..., Any]
GUIDED = ["--refiner", "guided_filter", "--set", "radius=12"]


def shifted(name: str) -> np.ndarray:
    """A mask three pixels beside a square of the photograph."""
    return np.roll(truth(name), 3, 1)


def wrong(mask: np.ndarray, name: str) -> int:
    return int(np.count_nonzero(mask != truth(name)))


def save(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if palette:
        picture.putpalette(palette)
    picture.save(path)


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "shop" / "images"
    for name in ("a", "b"):
        save(folder / f"{name}.png", photograph())
    return folder


# Mask files


def test_binary_soft_and_several_files_keep_their_form(hrseg: Command, images: Path, tmp_path: Path) -> None:
    """0 and 1 stay 0 and 1, ignored pixels stay ignored, soft masks keep their depth, names stay."""
    masks, out = tmp_path / "masks", tmp_path / "out"
    red = shifted("red")
    save(masks / "a.png", red.astype(np.uint8))
    ignored = np.where(red, 255, 0).astype(np.uint8)
    ignored[:5] = 128
    save(masks / "a_with void.png", ignored)
    save(masks / "b_blue.png", shifted("blue").astype(np.uint8) * 255)
    save(masks / "b_soft.png", (red * np.float32(60000)).astype(np.uint16))
    save(masks / "b_cutout.png", photograph())
    save(masks / "b_nothing.png", np.zeros_like(ignored))
    done = hrseg("refine", images, "--masks", masks, *GUIDED, "-o", out)
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in out.glob("*.png")) == [
        "a.png", "a_with void.png", "b_blue.png", "b_nothing.png", "b_soft.png",
    ]  # fmt: skip
    assert set(np.unique(read(out / "a.png"))) == {0, 1}
    assert wrong(read(out / "a.png") > 0, "red") < wrong(red, "red") / 2
    void = read(out / "a_with void.png")
    assert (void[:5] == 128).all()
    assert set(np.unique(void)) == {0, 128, 255}
    assert wrong(read(out / "b_blue.png") > 0, "blue") < wrong(shifted("blue"), "blue") / 2
    soft = read(out / "b_soft.png")
    assert soft.dtype == np.uint16
    assert len(np.unique(soft)) > 3
    assert not read(out / "b_nothing.png").any()
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["masks"] for row in rows] == ["a.png", "a_with void.png", "b_blue.png", "b_nothing.png", "b_soft.png"]
    assert rows[3]["changed"] == 0


def test_instances_keep_their_ids_and_palette(hrseg: Command, images: Path, tmp_path: Path) -> None:
    ids = np.zeros(truth("red").shape, np.uint8)
    ids[shifted("red")], ids[shifted("blue")], ids[110:, :] = 7, 3, 255
    palette = [value for k in range(256) for value in (k, 255 - k, k // 2)]
    palette[:3] = 0, 0, 0
    save(tmp_path / "masks" / "a.png", ids, palette)
    done = hrseg("refine", images / "a.png", "--masks", tmp_path / "masks" / "a.png", "--instances", *GUIDED,
                 "--truth", tmp_path / "truth", "-o", tmp_path / "out")  # fmt: skip
    assert done.code == 1
    assert "no image found" in done.err or "no such file" in done.err
    known = np.zeros_like(ids)
    known[truth("red")], known[truth("blue")] = 7, 3
    save(tmp_path / "truth" / "a.png", known, palette)
    done = hrseg("refine", images / "a.png", "--masks", tmp_path / "masks" / "a.png", "--instances", *GUIDED,
                 "--truth", tmp_path / "truth", "-o", tmp_path / "out")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    refined = Image.open(tmp_path / "out" / "a.png")
    assert (refined.mode, refined.getpalette()) == ("P", palette)
    values = np.array(refined)
    assert set(np.unique(values)) == {0, 3, 7, 255}
    assert (values[110:] == 255).all()
    assert wrong(values == 7, "red") < wrong(ids == 7, "red") / 2
    rows = {row["metric"]: row for row in map(json.loads, done.out.splitlines())}
    assert set(rows) == {"iou", "biou", "mba"}
    assert (rows["iou"]["set"], rows["iou"]["n"]) == ("shop", 2)
    assert rows["iou"]["change"] == pytest.approx(rows["iou"]["after"] - rows["iou"]["before"], abs=2e-4)
    low, high = rows["iou"]["95%"]["change"]
    assert 0 < low <= rows["iou"]["change"] <= high


def test_each_bad_file_is_a_line_and_the_others_are_refined(hrseg: Command, images: Path, tmp_path: Path) -> None:
    masks, out = tmp_path / "masks", tmp_path / "out"
    save(masks / "a.png", shifted("red").astype(np.uint8) * 255)
    save(masks / "b.png", np.zeros((7, 9), np.uint8))
    save(masks / "stranger.png", np.zeros((7, 9), np.uint8))
    (masks / "a_broken.png").write_bytes(b"not a picture")
    done = hrseg("refine", images, "--masks", masks, *GUIDED, "-o", out)
    assert done.code == 1
    lines = done.err.splitlines()
    assert len(lines) == 3
    for line, says in zip(lines, ["no image stranger", "a_broken.png: cannot be read", "9x7 pixels, but"], strict=True):
        assert says in line
        assert line.startswith("hrseg: ")
    assert [path.name for path in out.glob("*.png")] == ["a.png"]
    again = hrseg("refine", images, "--masks", masks, *GUIDED, "-o", out)
    assert again.code == 1
    assert again.err.startswith("1 of 3 were already done") or "1 of 3 were already done" in again.err
    for words, says in (
        (["--masks", masks, "-o", masks], "contains the masks or images"),
        (["--masks", tmp_path / "gone"], "no such file or folder"),
        (["--masks", masks, "--refiner", "segrefiner"], "needs weights; give their file: --weights"),
        (["--masks", masks, "--set", "radios=3", "--refiner", "guided_filter"], "Did you mean 'radius'"),
        (["--masks", masks, "--instances", "--soft"], "give only one of them"),
        (["--masks", masks, "--threshold", "1"], "--threshold 1.0: give a probability"),
    ):
        done = hrseg("refine", images, "-o", tmp_path / "new", *words)
        assert says in done.err
        assert done.code in (1, 2)
        assert len(done.err.splitlines()) == 1


def test_a_refiner_that_removes_everything_loses_nothing(
    hrseg: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hrseg_cli.engine.refining import Refiner

    monkeypatch.setattr(Refiner, "__call__", lambda self, image, mask, *rest: np.zeros_like(mask))
    save(tmp_path / "masks" / "a.png", shifted("red").astype(np.uint8) * 255)
    done = hrseg("refine", images, "--masks", tmp_path / "masks", *GUIDED, "-o", tmp_path / "out")
    assert done.code == 1
    assert "the refiner left no pixel; kept as it is" in done.err
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png") > 0, shifted("red"))


# COCO


def polygon(mask: np.ndarray) -> list[float]:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, cols[0], cols[-1] + 1
    return [float(v) for v in (left, top, right, top, right, bottom, left, bottom)]


def counts(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths, slowly."""
    found, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            found.append(0)
            value = pixel
        found[-1] += 1
    return found


@pytest.fixture
def coco(tmp_path: Path, images: Path) -> Path:
    """Annotations of every kind: polygon, both run lengths, a crowd, a box alone, an empty mask, a broken one."""
    red, blue = shifted("red"), shifted("blue")
    size = list(red.shape)
    sides = {"height": str(size[0]), "width": f"{size[1]}.0"}  # some programs write text
    listed = [{"id": 5, "file_name": "sub/a.png", **sides, "licence": 1},
              {"id": 9, "file_name": "b.png"}, {"id": 11, "file_name": "gone.png"}]  # fmt: skip
    (images / "sub").mkdir()
    shutil.move(images / "a.png", images / "sub" / "a.png")
    outside = [-4.5, -3.0, 30.0, -3.0, 30.0, 30.5, -4.5, 30.5]
    shapes: list[tuple[int, Any]] = [
        (5, [polygon(red)]),
        (5, {"size": size, "counts": counts(blue)}),
        (9, run_lengths(red)),
        (9, run_lengths(np.zeros_like(red))),
        (9, [polygon(blue)[:4]]),
        (9, [outside]),
        (9, []),
        (11, [polygon(red)]),
    ]
    annotations: list[dict[str, Any]] = [
        {"id": 100 + k, "image_id": image, "category_id": k % 2 + 1, "segmentation": shape, "area": 1.5,
         "bbox": [0, 0, 1, 1], "iscrowd": 0, "note": "ä"}
        for k, (image, shape) in enumerate(shapes)
    ]  # fmt: skip
    annotations.append(
        {**annotations[0], "id": 200, "iscrowd": 1, "segmentation": {"size": size, "counts": counts(red)}}
    )
    path = tmp_path / "labels.json"
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    path.write_text(
        json.dumps({"images": listed, "annotations": annotations, "categories": categories, "info": {"x": 1}})
    )
    return path


@pytest.mark.filterwarnings("ignore:__array__")  # pycocotools uses NumPy 1's array protocol
def test_annotations_of_every_kind(hrseg: Command, images: Path, coco: Path, tmp_path: Path) -> None:
    done = hrseg("refine", images, "--masks", coco, *GUIDED, "-o", tmp_path / "out")
    assert done.code == 1
    lines = done.err.splitlines()
    assert len(lines) == 3
    for says in ("1 of 9 masks, such as annotation 106, has no segmentation", "image 11 'gone.png' is not among",
                 "annotation 104: a polygon of 4 numbers"):  # fmt: skip
        assert any(says in line for line in lines), says
    before, after = (json.loads(path.read_text()) for path in (coco, tmp_path / "out" / "labels.json"))
    assert {key: value for key, value in after.items() if key != "annotations"} == {
        key: value for key, value in before.items() if key != "annotations"
    }
    fixed = {"segmentation", "area", "bbox"}
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        assert {k: v for k, v in new.items() if k not in fixed} == {k: v for k, v in old.items() if k not in fixed}
        if old["id"] in (103, 104, 106, 107, 200):
            assert new == old
        else:
            assert type(new["segmentation"]) is type(old["segmentation"])
            if isinstance(new["segmentation"], dict):
                assert type(new["segmentation"]["counts"]) is type(old["segmentation"]["counts"])
    api = COCO(str(tmp_path / "out" / "labels.json"))
    for key, name in ((100, "red"), (101, "blue"), (102, "red")):
        annotation = api.anns[key]
        image = api.imgs[annotation["image_id"]]
        image.update(height=120, width=160)
        mask = api.annToMask(annotation) > 0
        assert wrong(mask, name) < wrong(shifted(name), name) / 2
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == pycoco.toBbox(api.annToRLE(annotation)).tolist()


@pytest.mark.filterwarnings("ignore:__array__")
def test_results_keep_ids_scores_and_order(
    hrseg: Command, images: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written by pycocotools' own encoder and read back by it; images by --image-list, --truth or name."""
    results: list[dict[str, Any]] = []
    for k, name in enumerate(("blue", "red", "red")):
        runs = pycoco.encode(np.asfortranarray(shifted(name), np.uint8))
        shape = {"size": runs["size"], "counts": runs["counts"].decode()}
        results.append(
            {"image_id": 9, "category_id": 1 + (name == "blue"), "segmentation": shape, "score": 0.9 - k / 8}
        )
    results.append({"image_id": 9, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.25})
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results[:3]))
    whole = json.loads(coco.read_text())
    mine = [{"id": c, "image_id": 9, "category_id": c, "segmentation": run_lengths(truth(n)), "area": 2000,
             "iscrowd": 0, "bbox": [0, 0, 9, 9]} for c, n in ((1, "red"), (2, "blue"))]  # fmt: skip
    whole["images"] = [{**one, "height": 120, "width": 160} for one in whole["images"]]
    known = tmp_path / "known.json"
    known.write_text(json.dumps({**whole, "annotations": mine}))
    done = hrseg("refine", images, "--masks", path, *GUIDED, "--truth", known, "-o", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    rows = {row["metric"]: row for row in map(json.loads, done.out.splitlines())}
    assert rows["iou"]["n"] == 3
    assert rows["iou"]["change"] > 0.05
    evaluation = COCOeval(COCO(str(known)), COCO(str(known)).loadRes(str(path)), "segm")
    evaluation.params.imgIds = [9]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert [rows[name]["before"] for name in ("ap", "ap50", "ap75")] == pytest.approx(evaluation.stats[:3], abs=1e-4)
    assert rows["ap"]["before"] < rows["ap"]["after"]
    assert rows["boundary_ap"]["after"] <= rows["ap"]["after"]
    assert rows["boundary_ap"]["before"] < rows["boundary_ap"]["after"]
    assert rows["ap"]["n"] == 2
    refined = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one.keys() for one in refined] == [one.keys() for one in results[:3]], "no box: it would change the area"
    loaded = COCO(str(known)).loadRes(str(tmp_path / "out" / "results.json"))
    assert [one["score"] for one in loaded.anns.values()] == [one["score"] for one in results[:3]]
    for one, name in zip(loaded.anns.values(), ("blue", "red", "red"), strict=True):
        mask = pycoco.decode(one["segmentation"]) > 0
        assert one["area"] == mask.sum()
        assert wrong(mask, name) < wrong(shifted(name), name) / 2
    done = hrseg("refine", images, "--masks", path, *GUIDED, "-o", tmp_path / "named")
    assert done.code == 1
    assert "image 9 matches no image; give --image-list" in done.err
    shutil.move(images / "b.png", images / "000000000009.png")
    path.write_text(json.dumps(results))
    done = hrseg("refine", images, "--masks", path, *GUIDED, "-o", tmp_path / "named")
    assert "such as result 3, has no segmentation; kept as they are" in done.err
    again = json.loads((tmp_path / "named" / "results.json").read_text())
    assert again == [*refined, results[3]]


def test_broken_files_are_one_line(hrseg: Command, images: Path, tmp_path: Path) -> None:
    for text, says in (
        ("[", "cannot be read as JSON"),
        ('{"images": 3}', "neither COCO annotations"),
        ("[]", "no masks"),
    ):
        (tmp_path / "bad.json").write_text(text)
        done = hrseg("refine", images, "--masks", tmp_path / "bad.json", *GUIDED, "-o", tmp_path / "out")
        assert (done.code, len(done.err.splitlines())) == (1, 1)
        assert says in done.err
    entries = [3, {"image_id": [1]}, {"image_id": True, "segmentation": []}]
    (tmp_path / "bad.json").write_text(json.dumps(entries))
    done = hrseg("refine", images, "--masks", tmp_path / "bad.json", *GUIDED, "-o", tmp_path / "out")
    assert "entry 0 has no valid image_id; it is kept as it is (2 more)" in done.err


# Resuming


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(hrseg: Command, images: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for k in range(12):
        save(masks / f"a_{k}.png", np.roll(shifted("red"), k, 0).astype(np.uint8) * 255)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert hrseg("refine", images, "--masks", masks, *GUIDED, "-o", whole).code == 0
    words = ["-m", "hrseg_cli.cli", "refine", images, "--masks", masks, *GUIDED, "-o", cut]
    for wanted in (1, 5):
        process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(cut.glob("*.png"))) < wanted:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = hrseg("refine", images, "--masks", masks, *GUIDED, "-o", cut)
    assert done.code == 0
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in cut.iterdir()
    }


def test_only_what_changed_is_refined_again(hrseg: Command, images: Path, tmp_path: Path) -> None:
    masks, out = tmp_path / "masks", tmp_path / "out"
    for name in ("a", "b"):
        save(masks / f"{name}.png", shifted("red").astype(np.uint8) * 255)
    words = ["refine", images, "--masks", masks, *GUIDED, "-o", out]
    hrseg(*words)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert hrseg(*words).err == "2 of 2 were already done\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    save(masks / "b.png", shifted("blue").astype(np.uint8) * 255)
    assert hrseg(*words).err == "1 of 2 were already done\n"
    assert "were already done" not in hrseg(*words, "--set", "smoothness=0.01").err
    text = (out / "refine.jsonl").read_text()
    (out / "refine.jsonl").write_text(text[:-20])  # killed while writing
    assert hrseg(*words, "--set", "smoothness=0.01").err == "1 of 2 were already done\n"
    assert (out / "refine.jsonl").read_text() == text
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "not written by 'hrseg refine'" in hrseg(*words[:-1], tmp_path / "full").err


# Clicks


def test_clicks_reach_the_object_they_were_made_for(
    hrseg: Command, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A negative click changes the mask of its object, and of no other."""
    clicks = {}
    for name in ("red", "blue"):
        save(tmp_path / "masks" / f"a_{name}.png", shifted(name).astype(np.uint8) * 255)
        rows, cols = np.nonzero(shifted(name))
        clicks[name] = [[int(np.median(rows)), int(np.median(cols)), 1]]
    blue = [*clicks["blue"], [int(rows[0]), int(cols[0]), 0]]
    file = tmp_path / "clicks.json"
    for out, given in (("one", clicks), ("two", clicks | {"blue": blue})):
        file.write_text(json.dumps({"a.png": given, "z.png": given}))
        command = ["refine", images, "--masks", tmp_path / "masks", "--refiner", "zoom_in", "--set", "side=64"]
        assert hrseg(*command, "--clicks", file, "--out", tmp_path / out).code == 0
        assert "clicks without a mask are ignored: 1, such as z.png" in caplog.text
        caplog.clear()
    same = {
        name: (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        for name in ("a_red.png", "a_blue.png")
    }
    assert same == {"a_red.png": True, "a_blue.png": False}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["refine", "x", "--masks", "y", "--refiner", "FocusCut"], "unknown refiner 'FocusCut'"),
        (["refine", "x", "--masks", "y", "--refiner", "focuscut"], "use --protocol fast_focus, for existing masks"),
        (["refine", "x", "--masks", "y", "--refiner", "pointrend"], "refiner zoom_in with --model BASE+ADAPTER"),
        (
            ["evaluate", "-d", "samples", "--refine", "focuscut"],
            "--init-mask MASKS --clicks FILE --protocol fast_focus",
        ),
        (
            ["evaluate", "-d", "samples", "--set", "refine.name=pointrend"],
            "train it with 'hrseg adapt --adapter pointrend'",
        ),
    ],
)
def test_what_is_no_refiner_names_the_nearest_way(hrseg: Command, words: list[str], told: str) -> None:
    done = hrseg(*words)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert told in done.err


def test_focuscut_on_existing_masks(hrseg: Command, images: Path, tmp_path: Path) -> None:
    """As the error above says."""
    save(tmp_path / "masks" / "a.png", shifted("red").astype(np.uint8) * 255)
    (tmp_path / "clicks.json").write_text(json.dumps({"a.png": [[40, 22, 0], [40, 40, 1]]}))
    words = ["--init-mask", tmp_path / "masks", "--clicks", tmp_path / "clicks.json", "--protocol", "fast_focus"]
    done = hrseg("predict", images / "a.png", *words, "-m", "python:tiny_photos:discs", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "a.png").is_file()


def test_clicks_that_cannot_be_used_are_one_line(hrseg: Command, images: Path, tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", shifted("red").astype(np.uint8) * 255)
    file = tmp_path / "clicks.json"
    command = ["refine", images, "--masks", tmp_path / "masks", "--clicks", file, "--out", tmp_path / "out"]
    for content, refiner, message in (
        ({"a.png": [[1, 1, 1]]}, "guided_filter", "refiner guided_filter takes none"),
        ({"z.png": [[1, 1, 1]]}, "zoom_in", "no clicks on these masks; name images as in a.png"),
        ({"a.png": {"hat": [[1, 1, 1]]}}, "zoom_in", "no clicks on these masks"),
        ({"a.png": [[1, 1, 5, 5]]}, "zoom_in", "a box for a.png"),
    ):
        file.write_text(json.dumps(content))
        done = hrseg(*command, "--refiner", refiner)
        assert done.code == 1
        assert message in done.err
        assert "--clicks" in done.err


# Python


@pytest.mark.parametrize("out", ["file", "file/within"])
def test_a_file_in_the_place_of_the_folder_is_named(hrseg: Command, images: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    save(tmp_path / "masks" / "a.png", shifted("red").astype(np.uint8) * 255)
    for command in (["refine", images, "--masks", tmp_path / "masks"], ["predict", images / "a.png", "--click", "9,9"]):
        done = hrseg(*command, "--out", tmp_path / out)
        assert done.code == 1
        assert done.err.startswith(f"hrseg: --out {tmp_path / out}: cannot be written (")
    assert (tmp_path / "file").read_text() == "mine"


def test_masks_in_memory(images: Path) -> None:
    red, blue = shifted("red"), shifted("blue")
    one = hrseg_cli.refine(photograph(), red, "guided_filter", options={"radius": 12})
    assert one.probability is not None
    assert one.probability.shape == red.shape
    both = hrseg_cli.refine(images / "b.png", np.stack([red, blue]), "guided_filter", options=["radius=12"]).probability
    assert both is not None
    np.testing.assert_array_equal(both[0], one.probability)
    assert wrong(both[1] > 0.5, "blue") < wrong(blue, "blue") / 2
    with pytest.raises(hrseg_cli.HrsegError, match=r"`masks`: shape \(3, 3\)"):
        hrseg_cli.refine(photograph(), np.zeros((3, 3)), "guided_filter")
    with pytest.raises(hrseg_cli.HrsegError, match="`truth`: scores are for files"):
        hrseg_cli.refine(photograph(), red, "guided_filter", truth="x")


def test_files_from_python(images: Path, tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", shifted("red").astype(np.uint8) * 255)
    save(tmp_path / "truth" / "a.png", truth("red").astype(np.uint8) * 255)
    made = hrseg_cli.refine(
        images,
        tmp_path / "masks",
        "guided_filter",
        truth=tmp_path / "truth",
        out=tmp_path / "out",
        options={"radius": 12},
    )
    assert made.files == (tmp_path / "out" / "a.png",)
    assert made.table is not None
    assert list(made.table.metric) == ["iou", "biou", "mba"]
    assert (made.table.change_low > 0).all()
