"""Manifests: all there, complete, consistent with each other and with the published counts; what is on disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from hrseg_cli.data.manifest import (
    Manifest,
    Split,
    files_for,
    load_manifest,
    manifest_names,
    match_files,
    overview,
    present,
    resolve_parts,
)
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.recipe import data_folder, protocol_names

WANTED = [
    *("grabcut", "berkeley", "davis", "davis585", "coco_mval", "sbd", "pascalvoc", "coco_lvis"),
    *("dis5k", "thinobject5k", "fss1000", "ecssd", "msra10k", "duts", "dut_omron", "coift", "hrsod", "big"),
    *("hqseg44k", "regular"),
]

# Objects as published: RITM's README for the first lines, the HQSeg-44K archives for the others.
PUBLISHED = {
    "grabcut/val": 50,
    "berkeley/val": 100,
    "davis/val": 345,
    "davis585/val": 585,
    "coco_mval/val": 800,
    "sbd/val": 6671,
    "sbd/train": 20172,
    "pascalvoc/val": 3417,
    "coco_lvis/train": 1500000,
    "dis5k/train": 3000,
    "dis5k/val": 470,
    "dis5k/te4": 500,
    "thinobject5k/train": 4748,
    "thinobject5k/val": 500,
    "fss1000/train": 10000,
    "duts/train": 10553,
    "duts/test": 5019,
    "ecssd/train": 1000,
    "msra10k/train": 10000,
    "dut_omron/train": 5168,
    "coift/val": 280,
    "hrsod/val": 287,
    "big/val": 50,
    "big/test": 100,
}

# One real pair of file names of each set, below the data root.
REAL_NAMES = {
    "grabcut/val": ("grabcut/data_GT/banana1.bmp", "grabcut/boundary_GT/banana1.bmp"),
    "berkeley/val": ("berkeley/images/100007.jpg", "berkeley/masks/100007.png"),
    "davis/val": ("davis/img/bear_00001.jpg", "davis/gt/bear_00001.png"),
    "davis585/val": ("davis585/blackswan/00009.jpg", "davis585/blackswan/object1_00009.png"),
    "coco_mval/val": ("coco_mval/img/airplane_1.jpg", "coco_mval/gt/airplane_1.png"),
    "sbd/val": ("sbd/img/2008_000002.jpg", "sbd/inst/2008_000002.mat"),
    "pascalvoc/val": ("pascalvoc/JPEGImages/2007_000033.jpg", "pascalvoc/SegmentationObject/2007_000033.png"),
    "coco_lvis/train": ("coco_lvis/train/images/000000000009.jpg", "coco_lvis/train/masks/000000000009.pickle"),
    "dis5k/val": (
        "hqseg44k/DIS5K/DIS-VD/im/1#Accessories#1#Bag#8_o.jpg",
        "hqseg44k/DIS5K/DIS-VD/gt/1#Accessories#1#Bag#8_o.png",
    ),
    "hrsod/val": (
        "hqseg44k/thin_object_detection/HRSOD/images/a.b.jpg",
        "hqseg44k/thin_object_detection/HRSOD/masks_max255/a.b.png",
    ),
    "fss1000/train": ("hqseg44k/cascade_psp/fss_all/ab_wheel_1.jpg", "hqseg44k/cascade_psp/fss_all/ab_wheel_1.png"),
    "big/test": ("big/test/2007_im.jpg", "big/test/2007_gt.png"),
}

ALL = [load_manifest(name) for name in manifest_names()]
SPLITS = [(manifest, name) for manifest in ALL for name in manifest.splits]


def identify(value: object) -> str | None:
    return value.name if isinstance(value, Manifest) else None


def test_every_set_of_the_paper_has_a_manifest() -> None:
    assert set(WANTED) <= set(manifest_names())


@pytest.mark.parametrize("manifest", ALL, ids=identify)
def test_manifest_is_complete(manifest: Manifest) -> None:
    """Beyond what loading refuses: a protocol that exists, real addresses, sentences, every split reachable."""
    assert manifest.protocol in protocol_names()
    assert manifest.terms.endswith(".")
    assert len(manifest.citation) > 20
    assert all(source.startswith(("http://", "https://")) for source in manifest.sources)
    for split in manifest.split_names():
        assert resolve_parts(manifest, split)
        assert files_for(manifest, [split]), "no archive brings this split"
    for split in manifest.splits.values():
        assert (split.count_objects is not None) or manifest.notes
        assert split.images != split.masks


def test_no_protocol_but_that_of_davis_differs() -> None:
    assert {m.name for m in ALL if m.protocol != "ritm"} == {"davis", "davis585"}


@pytest.mark.parametrize("place", PUBLISHED)
def test_published_counts(place: str) -> None:
    name, _, split = place.partition("/")
    assert load_manifest(name).splits[split].count_objects == PUBLISHED[place]


@pytest.mark.parametrize(
    ("name", "split", "total"), [("hqseg44k", "train", 44320), ("hqseg44k", "val", 1537), ("regular", "val", 7166)]
)
def test_composed_sets_add_up(name: str, split: str, total: int) -> None:
    pieces = resolve_parts(load_manifest(name), split)
    assert sum(piece.splits[part].count_objects or 0 for piece, part in pieces) == total
    assert load_manifest(name).totals[split] == total


def test_parts_of_hqseg44k_in_the_order_of_the_paper() -> None:
    counts = [
        [piece.splits[part].count_images for piece, part in resolve_parts(load_manifest("hqseg44k"), split)]
        for split in ("train", "val")
    ]
    assert counts == [[3000, 4748, 10000, 10553, 5019, 1000, 10000], [470, 500, 280, 287]]


def test_shared_archives_are_fetched_once_and_only_where_needed() -> None:
    hqseg = load_manifest("hqseg44k")
    assert [file.name for file in files_for(hqseg, ["val"])] == ["DIS5K.zip", "thin_object_detection.zip"]
    assert sorted(file.name for file in files_for(hqseg)) == [
        "DIS5K.zip",
        "cascade_psp.zip",
        "thin_object_detection.zip",
    ]
    assert [file.name for file in files_for(load_manifest("dis5k"), ["te1"])] == ["DIS5K-full.zip"]


def test_archives_of_one_name_and_place_are_one_archive() -> None:
    """Downloads and pinned sums are kept by these, so two archives must not share both, nor differ in description."""
    by_place = {}
    for manifest in ALL:
        for file in manifest.files:
            alike = file.model_copy(update={"splits": ()})
            assert by_place.setdefault((file.into, file.name), alike) == alike, f"{manifest.name}: {file.name}"


# ---- damaged manifests -----------------------------------------------------------------------------------------------

GOOD = yaml.safe_load((data_folder("data_manifests") / "grabcut.yaml").read_text(encoding="utf-8"))


def with_change(path: str, value: object) -> dict[str, object]:
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    place = content
    *steps, last = path.split(".")
    for step in steps:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("licences", "MIT", "unknown key 'licences'; did you mean 'licence'"),
        ("splits.val.binarise", "gt128", "did you mean 'binarize'"),
        ("splits.val.layout", "voc", "splits.val.layout: unknown layout 'voc'. Did you mean 'pascalvoc'?"),
        ("splits.val.count_objects", 0, "splits.val.count_objects"),
        ("splits.val.folder", "../elsewhere", "relative path"),
        ("files.0.into", "/abs", "relative path"),
        ("files.0.sha256", "abc", "files.0.sha256"),
        ("files.0.urls", ["file:///etc/passwd"], "files.0.urls.0"),
        ("files.0.name", "../x.zip", "files.0.name"),
        ("files.0.splits", ["train"], "unknown splits: train"),
        ("files", [], "splits need files"),
        ("parts", {"val": ["davis/val"]}, "either splits or parts"),
        ("terms", "", "terms"),
        ("name", "other", "it must match the file name"),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line(tmp_path: Path, path: str, value: object, said: str) -> None:
    (tmp_path / "grabcut.yaml").write_text(yaml.safe_dump(with_change(path, value)), encoding="utf-8")
    with pytest.raises(HrsegError, match=re.escape(said)) as error:
        load_manifest("grabcut", tmp_path)
    assert "grabcut.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_without_address_says_how_to_get_it(tmp_path: Path) -> None:
    content = with_change("files.0.urls", [])
    del content["files"][0]["how"]  # type: ignore[index]
    (tmp_path / "grabcut.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(HrsegError, match="needs urls, or 'how'"):
        load_manifest("grabcut", tmp_path)


def write_composed(folder: Path, name: str, parts: list[str], total: int) -> None:
    content = {key: GOOD[key] for key in ("version", "title", "licence", "terms", "citation", "sources")}
    content |= {"name": name, "parts": {"val": parts}, "totals": {"val": total}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_parts_in_a_circle_and_wrong_totals(tmp_path: Path) -> None:
    (tmp_path / "grabcut.yaml").write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    write_composed(tmp_path, "one", ["grabcut/val", "two/val"], 50)
    write_composed(tmp_path, "two", ["one/val"], 50)
    write_composed(tmp_path, "three", ["grabcut/val"], 51)
    write_composed(tmp_path, "four", ["grabcut/train"], 50)
    write_composed(tmp_path, "five", ["grabcat/val"], 50)
    for name, said in (
        ("one", "form a cycle .one/val > two/val > one/val"),
        ("three", "add up to 50, but totals is 51"),
        ("four", "unknown split of grabcut 'train'"),
        ("five", "Did you mean 'grabcut'"),
    ):
        with pytest.raises(HrsegError, match=said):
            resolve_parts(load_manifest(name, tmp_path), "val", tmp_path)


def test_own_sets_may_be_composed_of_known_ones(tmp_path: Path) -> None:
    """What is not in the user's folder comes with hrseg; what is in both is the user's."""
    write_composed(tmp_path, "mine", ["grabcut/val", "berkeley/val"], 150)
    pieces = resolve_parts(load_manifest("mine", tmp_path), "val", tmp_path)
    assert pieces == [(load_manifest("grabcut"), "val"), (load_manifest("berkeley"), "val")]
    (tmp_path / "grabcut.yaml").write_text(yaml.safe_dump({**GOOD, "title": "Own"}), encoding="utf-8")
    pieces = resolve_parts(load_manifest("mine", tmp_path), "val", tmp_path)
    assert [piece.title for piece, _ in pieces] == ["Own", load_manifest("berkeley").title]
    assert present(load_manifest("mine", tmp_path), tmp_path, tmp_path).state == "absent"
    assert len(files_for(load_manifest("mine", tmp_path), folder=tmp_path)) == 2
    assert manifest_names(tmp_path) == ["grabcut", "mine"]
    with pytest.raises(UnknownName, match="Did you mean 'berkeley'"):
        load_manifest("berkley", tmp_path)


def test_yml_is_yaml(tmp_path: Path) -> None:
    write_composed(tmp_path, "mine", ["grabcut/val"], 50)
    (tmp_path / "mine.yaml").rename(tmp_path / "mine.yml")
    (tmp_path / "grabcut.yml").write_text(yaml.safe_dump({**GOOD, "title": "Own"}), encoding="utf-8")
    ((piece, _),) = resolve_parts(load_manifest("mine", tmp_path), "val", tmp_path)
    assert piece.title == "Own"


def test_what_is_not_settled_is_not_asserted() -> None:
    """SBD's training objects may count those that RITM leaves out; its validation objects are exact."""
    sbd = load_manifest("sbd")
    assert (sbd.splits["train"].about, sbd.splits["val"].about) == (True, False)
    assert "unclear" in sbd.notes


def test_an_unknown_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'hqseg44k'"):
        load_manifest("hqseg44")


def test_a_changed_manifest_is_read_again(tmp_path: Path) -> None:
    """Manifests are remembered, but not beyond a change of the file."""
    path = tmp_path / "grabcut.yaml"
    for version in (1, 2):
        path.write_text(yaml.safe_dump({**GOOD, "version": version}), encoding="utf-8")
        os.utime(path, ns=(version * 10**9, version * 10**9))
        assert load_manifest("grabcut", tmp_path).version == version


# ---- what lies on disk -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", REAL_NAMES)
def test_patterns_find_real_names_and_pair_them(tmp_path: Path, place: str) -> None:
    name, _, split_name = place.partition("/")
    split = load_manifest(name).splits[split_name]
    for path in REAL_NAMES[place]:
        touch(tmp_path / path)
    (image,) = match_files(tmp_path / split.folder, split.images).items()
    (mask,) = match_files(tmp_path / split.folder, split.masks).items()
    assert (image[1], mask[1]) == tuple(tmp_path / path for path in REAL_NAMES[place])
    if split.layout != "davis585":  # several objects a frame there
        assert image[0] == mask[0]


def touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def small_copy(root: Path, split: Split, count: int = 3) -> list[Path]:
    """Empty files in the layout of a split, three pairs and two strays, and its listing. Returns the masks."""
    masks = []
    for number in range(count + 2):
        for pattern in (split.images, split.masks):
            body, _, _ = pattern.rpartition(".*")
            path = root / split.folder / ((body + ".png") if body else pattern).replace("*", f"a.{number}")
            listed = number < count
            if listed or (split.listing and pattern == split.images):
                touch(path)
                masks += [path] if pattern == split.masks else []
    if split.listing:
        touch(root / split.folder / split.listing, "".join(f"a.{number}\n" for number in range(count)))
    return masks


@pytest.mark.parametrize(("manifest", "name"), SPLITS, ids=identify)
def test_small_copies_of_every_layout_are_counted(tmp_path: Path, manifest: Manifest, name: str) -> None:
    split = manifest.splits[name].model_copy(update={"count_images": 3, "count_objects": 3})
    small = manifest.model_copy(update={"splits": {name: split}})
    assert present(small, tmp_path).state == "absent"
    masks = small_copy(tmp_path, split)
    status = present(small, tmp_path)
    assert (status.state, status.splits[f"{manifest.name}/{name}"].images) == ("ready", 3)
    masks[0].unlink()
    if not split.about:
        status = present(small, tmp_path)
        assert (status.state, status.splits[f"{manifest.name}/{name}"].masks) == ("partial", 2)


def test_a_composed_set_is_partial_until_all_its_parts_are_there(tmp_path: Path) -> None:
    regular = load_manifest("regular")
    small_copy(tmp_path, load_manifest("grabcut").splits["val"], 50)
    status = present(regular, tmp_path)
    assert status.state == "partial"
    assert {key: found.state for key, found in status.splits.items()} == {
        "grabcut/val": "ready",
        "berkeley/val": "absent",
        "davis/val": "absent",
        "sbd/val": "absent",
    }


def test_a_missing_listing_is_not_mistaken_for_absence(tmp_path: Path) -> None:
    sbd = load_manifest("sbd")
    small_copy(tmp_path, sbd.splits["val"])
    (tmp_path / "sbd" / "val.txt").unlink()
    assert present(sbd, tmp_path).splits["sbd/val"].state == "partial"


def test_patterns(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.jpeg", "c.txt", ".hidden.jpg", "d.x.png", "sub/e.png", "Über 1.png"):
        touch(tmp_path / "im" / name)
    assert list(match_files(tmp_path, "im/*.*")) == ["a", "b", "d.x", "Über 1"]
    assert list(match_files(tmp_path, "im/*.jpg")) == ["a"]
    assert list(match_files(tmp_path, "*/*/*.png")) == ["im/sub/e"]
    assert match_files(tmp_path, "nowhere/*.png") == {}


def test_two_images_of_one_stem_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "a.png")
    with pytest.raises(HrsegError, match=r"a\.jpg and .*a\.png: duplicate name"):
        match_files(tmp_path, "*.*")


def test_overview_has_a_line_for_every_set(tmp_path: Path) -> None:
    small_copy(tmp_path, load_manifest("grabcut").splits["val"], 50)
    lines = {line["name"]: line for line in overview(tmp_path)}
    assert list(lines) == manifest_names()
    assert (lines["grabcut"]["state"], lines["grabcut"]["splits"]) == ("ready", {"val": 50})
    assert (lines["hqseg44k"]["state"], lines["hqseg44k"]["splits"]) == ("absent", {"train": 44320, "val": 1537})
    assert lines["hqseg44k"]["bytes"] == 3529707387 + 1365490019 + 2445237905
    assert lines["davis"]["bytes"] is None
    assert lines["big"]["manual"] == ["BIG.zip"]


def test_overview_goes_on_past_a_damaged_set(tmp_path: Path) -> None:
    small_copy(tmp_path, load_manifest("grabcut").splits["val"], 50)
    for name in ("a.jpg", "A.jpg", "b.jpg", "b.jpeg"):
        touch(tmp_path / "berkeley" / "images" / name)
    with pytest.raises(HrsegError, match="duplicate name"):
        present(load_manifest("berkeley"), tmp_path)
    lines = {line["name"]: line for line in overview(tmp_path)}
    assert list(lines) == manifest_names()
    assert (lines["berkeley"]["state"], lines["berkeley"]["found"]) == ("damaged", {})
    assert lines["regular"]["state"] == "damaged"
    assert (lines["grabcut"]["state"], lines["davis"]["state"]) == ("ready", "absent")
