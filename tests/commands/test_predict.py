"""hrseg predict: clicks on one's own images, from the command line to the files it leaves."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as pycoco
from reference import GOLDEN, deterministic_weights
from two_disks import CENTRES, DISKS, IMAGE, iou, mask_of, rows, save_clicks

from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.photos import find_images, masks_by_stem
from hrseg_cli.engine.session import Session
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.recipe import load_protocol

# pycocotools 2.0.11 decodes by way of NumPy 1's array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Command = Callable[..., Any]
STATES = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """h18s in RITM's public format; the bias makes the untrained answers cover something."""
    path = tmp_path_factory.mktemp("weights") / "h18s.pth"
    state = deterministic_weights(h18s().state_dict())
    state["feature_extractor.cls_head.bias"] += 0.5
    torch.save({"state_dict": state, "config": STATES["h18s"]["config"]}, path)
    return path


def test_a_click_on_a_disk_finds_it_in_every_format(hrseg: Command, photos: Path) -> None:
    formats = [word for kind in ("png", "soft", "rle", "polygon", "cutout") for word in ("--format", kind)]
    words = ["-m", "grabcut", "--click", "60,60", "--click", "20,200,neg", *formats, "-o", photos / "out"]
    (row,) = rows(hrseg("predict", photos / "a" / "cat.png", *words))
    assert row["clicks"] == [[60, 60, 1], [20, 200, 0]]
    mask = mask_of(row["files"][0])
    assert iou(mask, DISKS["left"]) > 0.9
    assert row["area"] == mask.sum()
    assert [Path(file).name for file in row["files"]] == [
        "cat.png", "cat_soft.png", "cat_rle.json", "cat_polygon.json", "cat_cutout.png",
    ]  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(row["files"][1])) / 65535 > 0.49, mask)
    runs, shapes = (json.loads(Path(file).read_text())["annotations"][0]["segmentation"] for file in row["files"][2:4])
    assert np.array_equal(pycoco.decode(runs) > 0, mask)
    assert iou(pycoco.decode(pycoco.merge(pycoco.frPyObjects(shapes, *mask.shape))) > 0, mask) > 0.95
    assert np.array_equal(np.asarray(Image.open(row["files"][4]))[..., 3] > 0, mask)


def test_it_is_what_a_session_answers(hrseg: Command, photos: Path, checkpoint: Path) -> None:
    """A real network from a RITM file, click after click with the mask before carried, under the protocol asked for."""
    change = ["--set", "zoom.target=128"]
    words = ["-m", checkpoint, "--click", "60,60", "--click", "90.5,170,neg", "--format", "soft", *change]
    (row,) = rows(hrseg("predict", photos / "a" / "cat.png", *words, "-o", photos / "out"))
    session = Session(load_model(str(checkpoint))[0], IMAGE, load_protocol("fast", ["zoom.target=128"]))
    session.click(Click(60, 60, True))
    session.click(Click(90.5, 170, False))
    stored = np.asarray(Image.open(row["files"][0])) / 65535
    assert np.abs(stored - session.probability).max() < 1e-4
    assert row["area"] == session.mask.sum() > 0


def test_objects_of_an_image_and_images_of_a_stem_get_files_of_their_own(hrseg: Command, photos: Path) -> None:
    """Also in a later run into the same folder, and where an ending makes a name look like another's."""
    Image.fromarray(IMAGE).save(photos / "a" / "cat_left.png")
    two = {name: [[*centre, 1]] for name, centre in CENTRES.items()}
    clicks = save_clicks(photos / "c.json", **{"a/cat.png": two, "b/cat": [[60, 60]], "cat_left.png": [[90, 170]]})
    words = ["-m", "grabcut", "--clicks", clicks, "--format", "png", "-o", photos / "out"]
    found = rows(hrseg("predict", photos / "a", photos / "b", *words))
    names = {(Path(row["image"]).parent.name, row["object"]): Path(row["files"][0]).name for row in found}
    assert names == {
        ("a", "left"): "cat_left.png", ("a", "right"): "cat_right.png", ("b", ""): "cat.png",
    } | {("a", ""): "a_cat_left.png"}  # fmt: skip
    assert iou(mask_of(photos / "out" / "cat_left.png"), DISKS["left"]) > 0.9
    assert iou(mask_of(photos / "out" / "cat_right.png"), DISKS["right"]) > 0.9
    alone = rows(hrseg("predict", photos / "a" / "cat.png", "-m", "grabcut", "--click", "60,60", "-o", photos / "out"))
    assert Path(alone[0]["files"][0]).name == "a_cat.png"
    (photos / "cat_soft.png").write_bytes((photos / "a" / "cat.png").read_bytes())
    soft = rows(hrseg("predict", photos / "cat_soft.png", "-m", "grabcut", "--click", "60,60", "-o", photos / "out"))
    assert Path(soft[0]["files"][0]).name == f"{photos.name}_cat_soft.png"


def test_a_mask_is_corrected(hrseg: Command, photos: Path) -> None:
    """0 and 1 as well as 0 and 255 are masks; a click corrects what was given instead of starting anew."""
    (photos / "masks").mkdir()
    Image.fromarray((DISKS["left"] | DISKS["right"]).astype(np.uint8)).save(photos / "masks" / "cat.png")
    words = ["predict", photos / "a" / "cat.png", "-m", "grabcut", "--click", "60,60", "--protocol", "plain"]
    (row,) = rows(hrseg(*words, "--init-mask", photos / "masks", "-o", photos / "out"))
    assert iou(mask_of(row["files"][0]), DISKS["left"] | DISKS["right"]) > 0.9
    (row,) = rows(
        hrseg(*words, "--init-mask", photos / "masks" / "cat.png", "--click", "90,170,neg", "-o", photos / "o")
    )
    assert iou(mask_of(row["files"][0]), DISKS["left"]) > 0.9


def test_each_object_is_corrected_from_its_own_mask(hrseg: Command, photos: Path) -> None:
    """Of an earlier run: by what it recorded, not by names, for two folders hold a cat.png."""
    words = ["predict", photos / "a" / "cat.png", photos / "b" / "cat.png", "-m", "grabcut", "--protocol", "plain"]
    both = {"a/cat.png": [[*CENTRES["left"]]], "b/cat.png": [[*CENTRES["right"]]]}
    words += ["--clicks", save_clicks(photos / "c.json", **both)]
    rows(hrseg(*words, "-o", photos / "one"))
    found = rows(hrseg(*words, "--init-mask", photos / "one", "-o", photos / "two"))
    for row, name in zip(found, ("left", "right"), strict=True):  # from the other's mask it would be both disks
        assert iou(mask_of(row["files"][0]), DISKS[name]) > 0.9
    # Masks without a record: by name, unless that is a guess.
    (photos / "one" / "predict.jsonl").rename(photos / "kept.jsonl")
    done = hrseg(*words, "--init-mask", photos / "one", "-o", photos / "three")
    assert done.code == 1
    assert "cat.png matches both" in done.err
    assert not (photos / "three").exists()


@pytest.mark.parametrize(
    ("images", "clicks", "message"),
    [
        (["b/cat.png"], {"cat": [[60, 60]]}, "cat.png is the mask of {photos}/a/cat.png"),
        (["a/cat.png", "b/cat.png"], {"a/cat": [[60, 60]], "b/cat": [[60, 60]]}, "is the mask of {photos}/a/cat.png"),
        (["a/dog.png"], {"dog": [[60, 60]]}, "dog.png is missing"),
        (["a/dog.png"], {"dog": {"left": [[60, 60]]}}, "dog_left.png may be the mask of {photos}/a/dog_left.png"),
    ],
)
def test_a_mask_of_something_else_is_not_started_from(
    images: list[str], clicks: dict[str, Any], message: str, hrseg: Command, photos: Path
) -> None:
    rows(hrseg("predict", photos / "a" / "cat.png", "-m", "grabcut", "--click", "60,60", "-o", photos / "one"))
    for place in ("a", "one"):
        Image.fromarray(IMAGE[:, :, 0]).save(photos / place / "dog_left.png")
    words = ["--clicks", save_clicks(photos / "c.json", **clicks), "--init-mask", photos / "one", "-o", photos / "two"]
    done = hrseg("predict", *(photos / image for image in images), "-m", "grabcut", *words)
    assert done.code == 1
    assert message.format(photos=photos) in done.err
    assert done.err.count("\n") == 1


def test_long_names_of_images_and_folders_get_masks(hrseg: Command, photos: Path) -> None:
    for place in ("x", "y" * 250):
        (photos / place).mkdir()
        (photos / place / f"{'n' * 230}.png").write_bytes((photos / "a" / "cat.png").read_bytes())
        words = ["predict", photos / place, "-m", "grabcut", "--click", "60,60", "-o", photos / "out"]
        rows(hrseg(*words))
    assert len(list((photos / "out").glob("*.png"))) == 2


def test_clicks_of_an_image_that_is_not_given_are_told_and_left(hrseg: Command, photos: Path) -> None:
    clicks = save_clicks(photos / "c.json", **{"cat.png": [[60, 60]], "cat_1.png": [[90, 170]], "cat_2": [[90, 170]]})
    done = hrseg("predict", photos / "a" / "cat.png", "-m", "grabcut", "--clicks", clicks, "-o", photos / "out")
    (row,) = rows(done)
    assert row["clicks"] == [[60, 60, 1]]
    assert "ignoring clicks for 2 other images, such as cat_1.png" in done.err


def test_a_photograph_is_clicked_upright(hrseg: Command, tmp_path: Path) -> None:
    """A phone stores pictures on their side and says so in EXIF; clicks and mask are of the upright one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(IMAGE)).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    (row,) = rows(hrseg("predict", tmp_path / "*.jpg", "-m", "grabcut", "--click", "60,60", "-o", tmp_path / "out"))
    assert iou(mask_of(row["files"][0]), DISKS["left"]) > 0.9


@pytest.mark.parametrize("command", ["predict", "annotate"])
def test_single_precision_is_single_precision(
    command: str, hrseg: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU too: without TF32, and the same call computes the same bits."""
    seen = []

    def remembered(*_: Any) -> list[Any]:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic))
        return []

    monkeypatch.setattr("hrseg_cli.engine.predict.predict", remembered)
    monkeypatch.setattr("hrseg_cli.annotate.server.serve", remembered)
    words = ["--click", "60,60"] if command == "predict" else ["--no-browser"]
    done = hrseg(command, photos / "b", "-m", "grabcut", *words)
    assert done.code == 0, done.err
    assert seen == [(False, True)]


def test_hrsegs_own_cut_out_is_a_mask_to_start_from(hrseg: Command, photos: Path) -> None:
    """It was read by its brightness, which is that of the photograph."""
    words = ["predict", photos / "a" / "cat.png", "-m", "grabcut", "--click"]
    (first,) = rows(hrseg(*words, "60,60", "--format", "png", "--format", "cutout", "-o", photos / "first"))
    answers = [
        rows(hrseg(*words, "90,170,neg", "--init-mask", start, "-o", photos / Path(start).stem))[0]["area"]
        for start in first["files"]
    ]
    assert answers[0] == answers[1] > 3000


def test_the_rule_of_an_initial_mask_can_be_named(hrseg: Command, photos: Path) -> None:
    """127 may be the unknown part or the object; asked otherwise, the object is done again."""
    start = photos / "start.png"
    values = np.select([DISKS["left"], DISKS["right"]], [127, 255])
    Image.fromarray(values.astype(np.uint8)).save(start)
    words = ["predict", photos / "a" / "cat.png", "-m", "grabcut", "--click", "90,170", "--init-mask", start]
    words += ["-o", photos / "out"]
    refused = hrseg(*words)
    assert refused.code == 1
    assert refused.err.startswith(f"hrseg: {start}: values seen: 0, 127, 255")
    assert "--binarize nonzero" in refused.err
    both, right = (rows(hrseg(*words, "--binarize", rule))[0]["area"] for rule in ("nonzero", "gt128"))
    assert both > 6000 > right > 3000


def test_an_image_of_12_bits_asks_for_its_range(hrseg: Command, photos: Path) -> None:
    Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 16).save(photos / "deep.png")
    words = ["predict", photos / "deep.png", "-m", "grabcut", "--click", "60,60", "-o", photos / "out"]
    refused = hrseg(*words)
    assert refused.code == 1
    assert "--range 0..4095" in refused.err
    (row,) = rows(hrseg(*words, "--range", "0..4095"))
    assert iou(mask_of(row["files"][0]), DISKS["left"]) > 0.9
    assert hrseg(*words, "--range", "0..4095").err == "1 of 1 objects were already done\n"
    assert hrseg(*words, "--range", "0..65535").err == ""  # asked otherwise
    assert "LOW..HIGH" in hrseg(*words, "--range", "4095").err


def test_a_broken_image_does_not_stop_the_others(hrseg: Command, photos: Path) -> None:
    whole = (photos / "a" / "cat.png").read_bytes()
    (photos / "a" / "bad.png").write_bytes(whole[:-500])
    clicks = save_clicks(photos / "c.json", bad=[[60, 60]], cat=[[60, 600]], dog=[[60, 60]])
    words = ["predict", photos / "a", "-m", "grabcut", "--clicks", clicks, "-o", photos / "out"]
    done = hrseg(*words)
    assert done.code == 1
    assert [json.loads(line)["image"] for line in done.out.splitlines()] == [str(photos / "a" / "dog.png")]
    first, second = done.err.splitlines()
    assert first.startswith(f"hrseg: {photos / 'a' / 'bad.png'}: cannot be read")
    assert "cat.png: click 60,600 lies outside the image (150 rows, 240 columns)" in second
    (photos / "a" / "bad.png").write_bytes(whole)
    save_clicks(clicks, bad=[[60, 60]], cat=[[60, 60]], dog=[[60, 60]])
    done = hrseg(*words)
    assert len(rows(done)) == 3
    assert done.err == "1 of 3 objects were already done\n"


@pytest.mark.slow
def test_24_megapixels_stay_under_2_gigabytes(tmp_path: Path, checkpoint: Path) -> None:
    """A camera's JPEG, every format, a network: the most memory that a process of its own ever held."""
    big = Image.new("RGB", (6000, 4000), (20, 40, 60))
    big.paste((220, 200, 40), (2000, 1000, 4000, 3000))
    big.save(tmp_path / "big.jpg")
    script = (
        "import atexit, sys; from pathlib import Path; from hrseg_cli.cli import main; sys.argv[0] = 'hrseg'; "
        "atexit.register(lambda: print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])); main()"
    )
    words = ["predict", "big.jpg", "-m", str(checkpoint), "--click", "2000,3000", "-o", "out", "--format", "soft"]
    for kind in ("png", "rle", "polygon", "cutout"):
        words += ["--format", kind]
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell a process's memory")
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert mask_of(tmp_path / "out" / "big.png").shape == (4000, 6000)
    assert 100_000 < int(done.stdout.splitlines()[-1]) < 2_000_000  # kB


def test_files_about_all_images_cover_every_call(hrseg: Command, photos: Path) -> None:
    """Later calls add to them, and leave those that are up to date as somebody may have corrected them."""
    out = photos / "out"
    words = ["--model", "grabcut", "--protocol", "plain", "--out", out]
    for kind in ("coco", "yolo", "yolo_boxes", "labelme"):
        words += ["--format", kind]
    (photos / "c.json").write_text(json.dumps({"a/cat.png": {"disk 1": [[60, 60, 1]], "disk 2": [[90, 170, 1]]}}))
    done = hrseg("predict", photos / "a", "--clicks", photos / "c.json", *words)
    assert done.code == 0, done.err
    assert f"all objects together: {out / 'coco.json'}, " in done.err
    assert [json.loads(line)["files"] for line in done.out.splitlines()] == [[], []]
    first = json.loads((out / "coco.json").read_text())
    assert [one["name"] for one in first["categories"]] == ["disk"]
    assert [one["file_name"] for one in first["images"]] == ["cat.png"]
    for annotation, disk in zip(first["annotations"], DISKS.values(), strict=True):
        mask = pycoco.decode(annotation["segmentation"]) == 1
        assert (mask & disk).sum() / (mask | disk).sum() > 0.9
    (out / "labelme" / "cat.json").write_text("corrected")
    (photos / "c.json").write_text(json.dumps({"a/cat.png": {"disk 1": [[60, 60, 1]]}, "a/dog.png": [[60, 60, 1]]}))
    done = hrseg("predict", photos / "a", "--clicks", photos / "c.json", *words)
    assert done.code == 0, done.err
    second = json.loads((out / "coco.json").read_text())
    assert [one["name"] for one in second["categories"]] == ["disk", "object"]
    assert len(second["annotations"]) == 3, "the object of the first call included"
    assert (out / "labelme" / "cat.json").read_text() == "corrected"
    assert json.loads((out / "labelme" / "dog.json").read_text())["imagePath"] == "../../a/dog.png"
    (out / "yolo" / "labels" / "cat.txt").unlink()
    assert hrseg("predict", photos / "a", "--clicks", photos / "c.json", *words).code == 0
    assert len((out / "yolo" / "labels" / "cat.txt").read_text().splitlines()) == 2, "written again"
    refused = hrseg("predict", photos / "a/cat.png", photos / "b/cat.png", "--click", "1,1", *words)
    assert refused.code == 1
    done = hrseg("predict", photos / "a/cat.png", "--click", "60,60", "--model", "grabcut", "--out", out)
    assert done.code == 0, done.err
    assert (out / "coco.json").is_file(), "other objects are in it"


@pytest.mark.parametrize("image", ["a/cat.jpg", f"a/{'x' * 246}.png"])
def test_a_file_about_images_that_cannot_be_written_is_refused_before_any_click(
    image: str, hrseg: Command, photos: Path
) -> None:
    Image.fromarray(IMAGE).save(photos / image)
    (photos / "c.json").write_text(json.dumps({"cat.png": [[60, 60, 1]], Path(image).name: [[60, 60, 1]]}))
    words = ["--model", "grabcut", "--out", photos / "out", "--format", "labelme"]
    done = hrseg("predict", photos / "a", "--clicks", photos / "c.json", *words)
    assert done.code == 1
    assert done.out == ""
    assert "would write both to labelme/cat.json" in done.err or "more than 240 bytes" in done.err


def test_images_are_found_once_each(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "a" / ".hidden.png").touch()
    (photos / "a" / "notes.txt").touch()
    (photos / "x[1].JPG").touch()
    monkeypatch.chdir(photos)
    assert find_images(["a"]) == [Path("a/cat.png"), Path("a/dog.png")]
    assert find_images(["**/cat.*", str(photos / "a")]) == [Path("a/cat.png"), Path("b/cat.png"), photos / "a/dog.png"]
    assert find_images(["x[1].JPG"]) == [Path("x[1].JPG")]
    with pytest.raises(HrsegError, match=r"nothing/\*: no image found"):
        find_images(["a", "nothing/*"])
    (photos / "a" / "\udcff.png").touch()
    with pytest.raises(HrsegError, match="not UTF-8"):
        find_images(["a"])


def test_a_png_is_the_mask_among_files_of_one_name(tmp_path: Path) -> None:
    for name in ("cat.jpg", "cat.png", "cat.tif"):
        (tmp_path / name).touch()
    assert masks_by_stem(tmp_path) == {"cat": tmp_path / "cat.png"}


def test_photo_never_shows_the_whole_image_at_its_own_size() -> None:
    """What keeps memory and time the same for an image of any size."""
    zoom = load_protocol("photo").zoom
    assert zoom is not None
    assert (zoom.skip_clicks, zoom.target) == (-1, 400)


WRONG = [
    ("--click 60,60 --model nowhere.pth", 1, "no such file"),
    ("--click 60,60 --model grabcutt", 2, "Did you mean 'grabcut'"),
    ("", 1, "no clicks; give --click"),
    ("--click 60", 1, "--click 60: write ROW,COL"),
    ("--click 60,600", 1, "lies outside the image"),
    ("--click 60,60 --clicks c.json", 1, "give only one of them"),
    ("--click 60,60 {photos}/b", 1, "--click works on one image, not on 2"),
    ("--clicks nowhere.json", 1, "nowhere.json: cannot be read"),
    ("--clicks {photos}/other.json", 1, "no clicks for these images"),
    ("--click 60,60 --format jpg", 2, "unknown format 'jpg'"),
    ("--click 60,60 --tolerance -1", 1, "--tolerance"),
    ("--click 60,60 --tolerance 1e300 --format polygon", 1, "--tolerance 1e+300: give pixels, 0 to 10000"),
    ("--click 60,60 --protocol foto", 2, "Did you mean 'photo'"),
    ("--click 60,60 --out {photos}/a", 1, "contains the input cat.png"),
    ("--click 60,60 --out {photos}", 1, "not written by 'hrseg predict'"),
    ("--click 60,60 --init-mask nowhere.png", 1, "no such file or folder"),
    ("--click 60,60 --init-mask {photos}/small.png", 1, "small.png: 20x10 pixels, but "),
    ("--click 60,60 --init-mask {photos}/b", 1, "other.png is missing"),
    ("--click 60,60 --device gpu", 1, "write cpu, cuda"),
]


@pytest.mark.parametrize(("text", "code", "message"), WRONG, ids=[text for text, _, _ in WRONG])
def test_what_a_user_can_mend_is_one_line(text: str, code: int, message: str, hrseg: Command, photos: Path) -> None:
    save_clicks(photos / "other.json", other=[[1, 1]])
    Image.new("L", (20, 10)).save(photos / "small.png")
    image = photos / "a" / ("dog.png" if "contains" not in message else "cat.png")
    if "other.png" in message:
        image = image.rename(photos / "other.png")
    out = [] if "--out" in text else ["--out", photos / "out"]
    model = [] if "--model" in text else ["-m", "grabcut"]
    done = hrseg("predict", image, *model, *text.format(photos=photos).split(), *out)
    assert done.code == code, done.err
    assert message in done.err
    assert done.err.startswith("hrseg: ")
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_the_weights_that_come_with_hrseg_answer(hrseg: Command, photos: Path) -> None:
    done = hrseg("predict", photos / "a" / "cat.png", "--click", "60,60", "-o", photos / "out")
    assert done.code == 0, done.err
    assert json.loads(done.out)["image"].endswith("cat.png")
    assert (photos / "out" / "cat.png").is_file()
