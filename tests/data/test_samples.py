"""Reading datasets: recorded readings of RITM first, then what real folders get wrong."""

import json
import logging
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_pairs import disc, picture, put, put_pair

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.labels import binarize
from hrseg_cli.data.samples import (
    load,
    load_with_rule,
    split_options,
)
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.recipe import BinarizeRule

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDED = json.loads((GOLDEN / "dataset_fixture.json").read_text())


def counts(truth: np.ndarray) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(truth.ravel().tolist()).items())}


def put_palette(path: Path, indices: np.ndarray, palette: list[int]) -> None:
    image = Image.fromarray(indices)
    image.putpalette(palette)
    image.save(path)


def truth_of_only(folder: Path, **options: Any) -> tuple[np.ndarray, str]:
    (ref,) = open_dataset(str(folder), **options)
    sample, used = load_with_rule(ref)
    return sample.truth, used


# ---- recorded ----


@pytest.mark.parametrize(
    ("spec", "record", "ids", "rule"),
    [
        ("GrabCut", "GrabCut", ["a", "b"], "grabcut"),
        ("berkeley=Berkeley", "Berkeley", ["1", "1#2"], "grabcut"),
        ("DAVIS", "DAVIS/COCO_MVal", ["a.b", "x_00001"], "nonzero"),  # RITM fails on the dotted name, we read it
    ],
)
def test_public_layouts_read_as_ritm_reads_them(spec: str, record: str, ids: list[str], rule: str) -> None:
    *name, place = spec.split("=")
    refs = open_dataset("=".join([*name, str(GOLDEN / "mini" / place)]))
    assert [ref.id for ref in refs] == ids
    for ref in refs:
        sample, used = load_with_rule(ref)
        assert used == rule
        assert counts(sample.truth) == RECORDED[record]["gt_values"]
        assert sample.image.shape == (*sample.truth.shape, 3)
        assert sample.image.dtype == np.uint8
        assert sample.truth.dtype == np.int8
        assert sample.dataset == (name or [place])[0]


def test_several_masks_share_their_void_as_in_ritms_folder_reader() -> None:
    refs = open_dataset(str(GOLDEN / "mini" / "dir"), binarize="void128")
    assert [ref.id for ref in refs] == ["im_0", "im_1"]
    read = {str(i): counts(load(ref).truth) for i, ref in enumerate(refs)}
    assert read == RECORDED["ImagesDir 2 masks"]["per_object"]


def test_a_layout_typed_as_a_name_below_the_root_decides_the_rule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`--datasets berkeley` with $HRSEG_DATA must read value 1 as RITM does; a path alone is an ordinary folder."""
    (tmp_path / "berkeley").symlink_to(GOLDEN / "mini" / "Berkeley")
    monkeypatch.setenv("HRSEG_DATA", str(tmp_path))
    refs = open_dataset("berkeley")
    assert {(ref.rule, ref.dataset) for ref in refs} == {("grabcut", "berkeley")}
    assert {ref.rule for ref in open_dataset(str(tmp_path / "berkeley"))} == {"auto"}


# ---- label rules ----


@pytest.mark.parametrize(
    ("rule", "objects", "ignored"),
    [
        ("nonzero", set(range(1, 256)), set()),
        ("gt128", set(range(129, 256)), set()),
        ("void128", set(range(129, 256)), {128}),
        ("grabcut", {1, *range(129, 256)}, {128}),
    ],
)
def test_each_rule_over_all_256_values(rule: BinarizeRule, objects: set[int], ignored: set[int]) -> None:
    truth, used = binarize(np.arange(256, dtype=np.uint8)[None], rule)
    assert used == rule
    assert truth.dtype == np.int8
    assert set(np.flatnonzero(truth[0] == 1)) == objects
    assert set(np.flatnonzero(truth[0] == -1)) == ignored


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 1]], np.uint8), "nonzero"),
        (np.array([[True, False]]), "nonzero"),
        (np.array([[0, 255]], np.uint8), "void128"),
        (np.array([[0, 1, 64, 128, 129, 255, 254, 253]], np.uint8), "gt128"),
        (np.array([[0, 1]], np.uint16), "nonzero"),
        (np.array([[0, 128 * 257, 65535]], np.uint16), "void128"),
    ],
)
def test_auto_tells_labels_from_an_antialiased_edge(values: np.ndarray, expected: str) -> None:
    truth, used = binarize(values, "auto")
    assert used == expected
    assert (truth == 1).any()


def test_a_16_bit_mask_keeps_its_void_and_its_edge_at_half() -> None:
    truth, _ = binarize(np.array([[0, 32767, 32896, 33024, 33153, 65535]], np.uint16), "void128")
    assert truth.tolist() == [[0, 0, -1, -1, 1, 1]]
    truth, _ = binarize(np.array([[0, 128, 129, 255]], np.uint16), "void128")  # 8-bit values in a 16-bit file
    assert truth.tolist() == [[0, -1, 1, 1]]


def test_a_mask_of_zeros_and_ones_needs_no_option(folder: Path) -> None:
    put_pair(folder, "x", disc() // 255)
    truth, used = truth_of_only(folder)
    assert used == "nonzero"
    assert np.array_equal(truth, disc() // 255)


@pytest.mark.parametrize("kind", ["16-bit", "1-bit", "RGB", "alpha", "float", "palette"])
def test_the_same_mask_in_every_pixel_format(folder: Path, kind: str) -> None:
    put_pair(folder, "x")
    path, mask = folder / "masks/x.png", disc()
    if kind == "16-bit":
        put(path, mask.astype(np.uint16) * 257)
    elif kind == "1-bit":
        put(path, mask > 0)
    elif kind == "RGB":
        put(path, np.stack([mask * 0, mask, mask // 3], axis=2))
    elif kind == "alpha":
        put(path, np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask]))
    elif kind == "float":
        path.unlink()
        put(path.with_suffix(".tif"), (mask // 255).astype(np.float32))
    else:
        put_palette(path, mask // 255, [0, 0, 0, 128, 0, 0])
    assert np.array_equal(truth_of_only(folder)[0], mask // 255)


def test_opaque_colours_win_over_a_constant_alpha(folder: Path) -> None:
    put_pair(folder, "x", np.dstack([disc()] * 3 + [np.full_like(disc(), 255)]))
    assert np.array_equal(truth_of_only(folder)[0], disc() // 255)


def test_a_grey_palette_that_numbers_white_first_is_not_inverted(folder: Path) -> None:
    """PNG optimisers number colours by frequency: index 0 may be the white object."""
    put_pair(folder, "x")
    put_palette(folder / "masks/x.png", 1 - disc() // 255, [255, 255, 255, 0, 0, 0])
    assert np.array_equal(truth_of_only(folder)[0], disc() // 255)


def test_no_object_pixel_names_mask_rule_values_and_fix(folder: Path) -> None:
    put_pair(folder, "x", disc() // 255 * 3)
    with pytest.raises(
        HrsegError, match=r"x\.png: no object pixel under rule 'void128'; values seen: 0, 3; .*`instances`"
    ):
        truth_of_only(folder)
    put_pair(folder, "x", disc() // 255 * 100)
    with pytest.raises(HrsegError, match="`binarize` nonzero"):
        truth_of_only(folder)
    put_pair(folder, "x", disc() * 0)
    with pytest.raises(HrsegError, match="the mask is empty"):
        truth_of_only(folder)


# ---- instances ----

VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, *[0] * 753, 224, 224, 192]


def test_palette_indices_are_objects_and_255_is_void(folder: Path) -> None:
    """Grey values of a palette collide; its indices do not."""
    indices = np.zeros((12, 20), np.uint8)
    indices[2:5, 2:9], indices[6:9, 2:9], indices[5, 2:9] = 1, 10, 255
    put_pair(folder, "x")
    put_palette(folder / "masks/x.png", indices, VOC)
    refs = open_dataset(str(folder), instances=True)
    assert [(ref.id, ref.instance) for ref in refs] == [("x#1", 1), ("x#10", 10)]
    for ref in refs:
        sample, used = load_with_rule(ref)
        assert used == "instance"
        assert np.array_equal(sample.truth == 1, indices == ref.instance)
        assert np.array_equal(sample.truth == -1, indices == 255)


def test_a_16_bit_mask_holds_more_than_255_objects(folder: Path) -> None:
    ids = np.zeros((12, 20), np.uint16)
    ids[3, 3], ids[4, 4], ids[5, 5], ids[6, 6] = 255, 256, 40000, 65535
    put_pair(folder, "x", ids)
    refs = open_dataset(str(folder), instances=True)
    assert [ref.instance for ref in refs] == [255, 256, 40000]
    assert counts(load(refs[2]).truth) == {"-1": 1, "0": 238, "1": 1}


def test_colours_are_refused_as_ids(folder: Path) -> None:
    put_pair(folder, "x", np.dstack([disc(), disc() // 2, disc() * 0]))
    with pytest.raises(HrsegError, match=r"x\.png: contains colours, not ids"):
        open_dataset(str(folder), instances=True)


def test_limit_leaves_later_masks_closed(folder: Path) -> None:
    put_pair(folder, "a", disc() // 255 + np.eye(12, 20, dtype=np.uint8))
    put_pair(folder, "b")
    (folder / "masks/b.png").write_bytes(b"")
    assert [ref.id for ref in open_dataset(str(folder), instances=True, limit=2)] == ["a#1", "a#2"]
    with pytest.raises(HrsegError, match=r"b\.png.*an empty file"):
        open_dataset(str(folder), instances=True)


def test_binary_masks_read_as_ids_say_so(folder: Path) -> None:
    put_pair(folder, "x")
    with pytest.raises(HrsegError, match="omit `instances`"):
        open_dataset(str(folder), instances=True)


# ---- names ----


def test_dotted_foreign_and_upper_case_names_in_sub_folders(folder: Path) -> None:
    put_pair(folder, "v/a.b")
    put_pair(folder, "v/a.c")
    put_pair(folder, "Überblick 图")
    put(folder / "images/IMG_1.JPG", picture(), format="JPEG")
    put(folder / "masks/IMG_1.PNG", disc(), format="PNG")
    (folder / "images/notes.txt").write_text("no image")
    (folder / "masks/._IMG_1.PNG").write_bytes(b"left by a Mac")
    refs = open_dataset(str(folder))
    assert [ref.id for ref in refs] == ["IMG_1", "v/a.b", "v/a.c", "Überblick 图"]
    assert all(load(ref).truth.any() for ref in refs)


def test_accents_composed_and_decomposed_are_one_name(folder: Path) -> None:
    put(folder / "images/e\u0301.jpg", picture())
    put(folder / "masks/\u00e9.png", disc())
    assert [ref.id for ref in open_dataset(str(folder))] == ["\u00e9"]


def test_exact_stem_wins_over_a_numbered_mask(folder: Path) -> None:
    """a_1.png belongs to the image a_1, not to a; numbers sort as numbers."""
    put_pair(folder, "a")
    put_pair(folder, "a_1")
    for k in (10, 2):
        put(folder / f"masks/a_{k}.png", disc())
    refs = open_dataset(str(folder))
    assert [(ref.id, ref.image.stem, ref.mask.stem) for ref in refs] == [
        ("a", "a", "a"),
        ("a_2", "a", "a_2"),
        ("a_10", "a", "a_10"),
        ("a_1", "a_1", "a_1"),
    ]


def test_two_images_of_one_stem_are_named(folder: Path) -> None:
    put_pair(folder, "x")
    put(folder / "images/x.png", picture())
    with pytest.raises(HrsegError, match=r"x\.jpg and .*x\.png"):
        open_dataset(str(folder))


def test_ids_that_collide_are_refused(folder: Path) -> None:
    """The object 2 of image '1' and the image '1#2' would share one line of the traces."""
    put_pair(folder, "1", disc() // 255 * 2)
    put_pair(folder, "1#2")
    (folder / "pairs.csv").write_text(
        "image,mask,kind\nimages/1.jpg,masks/1.png,instance\nimages/1#2.jpg,masks/1#2.png,\n"
    )
    with pytest.raises(HrsegError, match=r"1\.png and .*1#2\.png: both define object '1#2'"):
        open_dataset(str(folder))


def test_a_mask_without_image_is_an_error_that_counts_ignored_files(folder: Path) -> None:
    put_pair(folder, "x")
    put(folder / "masks/y.png", disc())
    (folder / "images/y.jxl").write_bytes(b"a format nobody reads")
    with pytest.raises(HrsegError, match=r"y\.png.*ignored files that are not images: y\.jxl"):
        open_dataset(str(folder))


def test_files_that_are_no_images_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is dropped without a word; hidden files and folders do not exist."""
    put_pair(folder, "x")
    for name in ("images/y.jxl", "masks/y.jxl", "images/.DS_Store"):
        (folder / name).write_bytes(b"a format nobody reads")
    assert len(open_dataset(str(folder))) == 1
    assert "skipped 2 files that are not images: y.jxl, y.jxl" in caplog.text


def test_masks_of_several_objects_that_hold_none_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_pair(folder, "x", disc() // 255 * 2)
    put_pair(folder, "y", disc() * 0)
    assert [ref.id for ref in open_dataset(str(folder), instances=True)] == ["x#2"]
    assert f"1 masks contain no object, such as {folder / 'masks/y.png'}" in caplog.text


@pytest.mark.parametrize("layout", ["davis585", "coco_lvis"])
def test_a_hidden_folder_tells_no_layout(layout: str, tmp_path: Path) -> None:
    name = {"davis585": "object1_00001.png", "coco_lvis": "hannotation.pickle"}[layout]
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / name).touch()
    with pytest.raises(HrsegError, match="not a dataset"):
        open_dataset(str(tmp_path))


def test_an_image_without_mask_is_skipped_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_pair(folder, "x")
    put(folder / "images/bare.jpg", picture())
    with caplog.at_level(logging.WARNING):
        assert [ref.id for ref in open_dataset(str(folder))] == ["x"]
    assert "bare.jpg" in caplog.text


# ---- pairs.csv ----


def test_pairs_decide_kind_per_row_and_win_over_the_folders(folder: Path) -> None:
    for stem in ("a", "b", "unlisted"):
        put_pair(folder, stem)
    put(folder / "masks/a_ids.png", disc() // 255 * 7)
    (folder / "pairs.csv").write_text(
        "\ufeffimage,mask,kind,note\n"
        "images/b.jpg,masks/b.png,binary,\n"
        "images/a.jpg,masks/a_ids.png,instance,\n"
        "images/a.jpg,masks/a.png,,\n",
        encoding="utf-8",
    )
    refs = open_dataset(f"mine={folder}")
    assert [(ref.id, ref.rule, ref.instance) for ref in refs] == [
        ("a", "auto", None),
        ("a_ids#7", "instance", 7),
        ("b", "auto", None),
    ]
    assert [load(ref).dataset for ref in refs] == ["mine"] * 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("picture,mask\nimages/x.jpg,masks/x.png\n", "columns image,mask"),
        ("image,mask\nimages/x.jpg,masks/gone.png\n", r"line 2: no file .*gone\.png"),
        ("image,mask,kind\nimages/x.jpg,masks/x.png,instances\n", "kind 'instances'"),
        ("image,mask\nimages/x.jpg,masks/x.png\nimages/x.jpg,masks/x.png\n", "line 3: duplicate mask"),
    ],
)
def test_a_wrong_line_of_pairs_is_named(folder: Path, text: str, complaint: str) -> None:
    put_pair(folder, "x")
    (folder / "pairs.csv").write_text(text)
    with pytest.raises(HrsegError, match=complaint):
        open_dataset(str(folder))


def test_another_table_of_the_same_folder(folder: Path) -> None:
    """Without images/ and masks/ too, with the options of any dataset, and ids where the column says regions."""
    for stem in ("a", "b"):
        put_pair(folder, stem)
    put(folder / "regions/a_0.png", disc() // 255 * 7)
    (folder / "pairs.csv").write_text("image,mask\nimages/b.jpg,masks/b.png\n")
    (folder / "regions.csv").write_text("image,regions\nimages/a.jpg,regions/a_0.png\n")
    (folder / "lists").mkdir()
    (folder / "lists/all.csv").write_text("image;mask;kind\nimages/a.jpg;regions/a_0.png;instance\n")
    assert [ref.id for ref in open_dataset(str(folder))] == ["b"]
    (ref,) = open_dataset(f"{folder}:table=regions.csv")
    assert (ref.id, ref.instance, ref.dataset) == ("a#7", 7, folder.name)
    assert (load(ref).truth == (disc() > 0)).all()
    assert open_dataset(f"{folder}:table=lists/all.csv") == [ref]
    assert open_dataset(f"{folder}:table=regions.csv,kept=0.000001") == [ref]
    assert open_dataset(f"maps={folder}:table=regions.csv") == [replace(ref, dataset="maps")]
    apart = folder.parent / "apart"
    apart.mkdir()
    (apart / "some.csv").write_text(f"image,mask\n{folder}/images/b.jpg,{folder}/masks/b.png\n")
    assert [ref.id for ref in open_dataset(f"{apart}:table=some.csv")] == ["b"]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("region.csv", "region.csv: no such table; available tables: pairs.csv, regions.csv"),
        ("images", "images: no such table"),
        ("../other.csv", r"table=\.\./other.csv: the name '../other.csv' points outside its folder"),
        ("{0}/other.csv", "points outside its folder"),
        ("link/other.csv", "behind a link that points outside"),
        ("regions.csv", "the first line must name the column mask or regions once"),
    ],
)
def test_a_table_that_is_not_in_the_folder(folder: Path, table: str, complaint: str) -> None:
    put_pair(folder, "a")
    (folder / "pairs.csv").write_text("image,mask\nimages/a.jpg,masks/a.png\n")
    (folder / "regions.csv").write_text("image,regions,mask\nimages/a.jpg,masks/a.png,masks/a.png\n")
    (folder.parent / "other.csv").write_text("image,mask\nimages/a.jpg,masks/a.png\n")
    (folder / "link").symlink_to(folder.parent)
    with pytest.raises(HrsegError, match=complaint):
        open_dataset(f"{folder}:table={table.format(folder.parent)}")


# ---- specifications ----


def test_a_misspelt_name_lists_layouts_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "plants").mkdir()
    with pytest.raises(UnknownName, match=r"Did you mean 'plants'.*berkeley.*procedural"):
        open_dataset("plonts", root=tmp_path)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("{0}/nowhere/there", "no such folder"),
        ("{0}", r"put images in images/ and their masks in masks/ \(looked for .*img/ and gt/; .*, or pairs\.csv"),
        ("{0}/half", r"half: not a dataset; has images/ but not masks/ \(looked for"),
        ("davis={0}/set", "layout 'davis' wants img/ and gt/"),
        ("{0}/file.txt", "a dataset is a folder"),
        ("={0}/set", "write NAME=FOLDER"),
        ("{0}/set", "no objects"),
    ],
)
def test_a_folder_that_is_no_dataset(folder: Path, spec: str, complaint: str) -> None:
    (folder.parent / "file.txt").write_text("")
    (folder.parent / "half" / "images").mkdir(parents=True)
    with pytest.raises(HrsegError, match=complaint):
        open_dataset(spec.format(folder.parent))


def test_references_travel_to_worker_processes(folder: Path) -> None:
    put_pair(folder, "x")
    (ref,) = open_dataset(str(folder))
    assert pickle.loads(pickle.dumps(ref)) == ref


def test_the_embedded_set_is_drawn_when_loaded() -> None:
    refs = open_dataset("procedural:count=3,size=256,seed=5")
    assert [ref.draw for ref in refs] == [(5, 0, 256), (5, 1, 256), (5, 2, 256)]
    assert len({ref.id for ref in refs}) == 3
    assert refs[2].id.startswith("00002_")
    sample, used = load_with_rule(refs[0])
    assert used == "gt128"
    assert max(sample.truth.shape) == 256
    assert (sample.truth == 1).any()
    assert len(open_dataset("procedural")) == 20
    assert open_dataset("fine=procedural:size=512", limit=1)[0].dataset == "fine"
    some = open_dataset("procedural:count=5,seed=5,kinds=gear+leaf")
    assert len(some) == 5
    assert {ref.id.partition("_")[2] for ref in some} == {"gear", "leaf"}
    assert {ref.id for ref in some} <= {ref.id for ref in open_dataset("procedural:count=50,seed=5")}


@pytest.mark.parametrize("options", ["size=big", "count=0", "count", "seeds=1", "kinds=gears"])
def test_a_wrong_option_of_the_embedded_set(options: str) -> None:
    with pytest.raises(HrsegError, match=options.partition("=")[0].rstrip("s")):
        open_dataset(f"procedural:{options}")


def test_order_is_by_name_whatever_the_disk_says(folder: Path) -> None:
    stems = ["b", "a-1", "a/1", "A", "a10", "a2"]
    for stem in stems:
        put_pair(folder, stem)
    assert [ref.id for ref in open_dataset(str(folder))] == sorted(stems)


# ---- what is typed ----


@pytest.mark.parametrize(
    ("spec", "text", "options"),
    [
        ("sbd", "sbd", {}),
        ("sbd:split=train", "sbd", {"split": "train"}),
        ("mine=/data/LVIS:split=train,stuff=1", "mine=/data/LVIS", {"split": "train", "stuff": "1"}),
        ("procedural:", "procedural", {}),
        ("x=procedural:count=3", "x=procedural", {"count": "3"}),
        ("/data/a:b", "/data/a:b", {}),
        ("C:\\data", "C:\\data", {}),
    ],
)
def test_options_stand_behind_the_colon(spec: str, text: str, options: dict[str, str]) -> None:
    assert split_options(spec) == (text, options)


def test_a_folder_may_look_like_options(tmp_path: Path) -> None:
    put_pair(tmp_path / "set:split=train", "x")
    spec = str(tmp_path / "set:split=train")
    assert split_options(spec) == (spec, {})
    assert [ref.id for ref in open_dataset(spec)] == ["x"]
    with pytest.raises(HrsegError, match="write 'count=VALUE' after the colon"):
        split_options("procedural:count")
