"""Layouts of the public sets: recorded readings of RITM first, then options, pairs and the pieces of a manifest."""

import json
import os
import pickle
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.index import build_index, is_fresh
from hrseg_cli.data.known import list_parts
from hrseg_cli.data.labels import voc_indices
from hrseg_cli.data.packed import load_pickle
from hrseg_cli.data.pixels import read_mask
from hrseg_cli.data.samples import expand, list_masks, list_split, load, load_with_rule, open_listing
from hrseg_cli.errors import HrsegError, UnknownName

GOLDEN = Path(__file__).parent.parent / "golden"
MINI = GOLDEN / "mini"
RECORDED = json.loads((GOLDEN / "dataset_fixture.json").read_text())


def counts(truth: np.ndarray) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(truth.ravel().tolist()).items())}


def put(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def picture(height: int = 12, width: int = 20) -> np.ndarray:
    row, col = np.mgrid[0:height, 0:width]
    return np.stack([40 + 3 * row, 60 + 2 * col, 200 - row - col], axis=2).astype(np.uint8)


def box(value: int = 255, dtype: Any = np.uint8) -> np.ndarray:
    mask = np.zeros((12, 20), dtype)
    mask[2:7, 3:11] = value
    return mask


# ---- recorded ----


@pytest.mark.parametrize(
    ("spec", "record", "rule"),
    [
        ("SBD", "SBD train", "instance"),  # the recorded split has no thin object, so both splits read alike
        ("SBD:split=train", "SBD train", "solid"),
        ("VOC", "VOC val", "instance"),
        ("LVIS:split=train", "COCO_LVIS stuff0", "layers"),
        ("LVIS:split=train,stuff=1", "COCO_LVIS stuff1", "layers"),
    ],
)
def test_sets_of_several_objects_read_as_ritm_reads_them(spec: str, record: str, rule: str) -> None:
    refs = open_dataset(spec, root=MINI)
    loaded = [load_with_rule(ref) for ref in refs]
    assert {str(k): counts(sample.truth) for k, (sample, _) in enumerate(loaded)} == RECORDED[record]["per_object"]
    assert {used for _, used in loaded} == {rule}


def test_sbd_objects_are_those_ritm_evaluates_and_nothing_is_written_there() -> None:
    before = sorted((MINI / "SBD").rglob("*"))
    refs = open_dataset(f"sbd={MINI / 'SBD'}")
    assert [f"('2008_1', {ref.instance})" for ref in refs] == RECORDED["SBD eval"]["sample_ids"]
    assert counts(load(refs[1]).truth) == RECORDED["SBD eval"]["gt_values"]
    assert sorted((MINI / "SBD").rglob("*")) == before


def test_voc_by_index_is_what_ritm_reads_by_grey_value() -> None:
    """RITM's ids 38 and 75 are the grey values of the colours of the indices 1 and 2."""
    refs = open_dataset("VOC", root=MINI)
    assert [ref.instance for ref in refs] == [1, 2]
    assert len(refs) == RECORDED["VOC test"]["n"]
    assert counts(load(refs[0]).truth) == RECORDED["VOC test"]["gt_values"]


def test_coco_lvis_keeps_the_hierarchy_and_tells_stuff_from_objects() -> None:
    refs = open_dataset("LVIS:split=train,stuff=1", root=MINI)
    assert [(ref.id, ref.parent, ref.stuff) for ref in refs] == [
        ("000000000009#0", None, None),
        ("000000000009#1", 0, None),
        ("000000000009#2", None, 2),
    ]


# ---- SBD and VOC ----


def put_sbd(folder: Path, stem: str, ids: np.ndarray) -> None:
    from scipy.io import savemat

    (folder / "inst").mkdir(parents=True, exist_ok=True)
    put(folder / f"img/{stem}.jpg", picture(*ids.shape))
    savemat(folder / f"inst/{stem}.mat", {"GTinst": {"Segmentation": ids, "Categories": np.ones((3, 1))}})


def test_sbd_train_leaves_out_what_fills_little_of_its_box(tmp_path: Path) -> None:
    """RITM's training reader drops scattered leftovers: under 8 % of the box. Its evaluation keeps them."""
    ids = np.zeros((20, 50), np.uint8)
    ids[0, 0] = ids[9, 9] = 1  # 2 of 100 pixels
    ids[10:12, 0:4] = ids[19, 9] = 2  # 9 of 100
    ids[0:5, 20:30] = 255  # SBD has no void
    put_sbd(tmp_path, "a", ids)
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("a\r\n\r\n")
    assert [ref.instance for ref in open_dataset(str(tmp_path))] == [1, 2, 255]
    refs = open_dataset(f"{tmp_path}:split=train")
    assert [ref.id for ref in refs] == ["a#2", "a#255"]
    assert counts(load(refs[1]).truth) == {"0": 950, "1": 50}


def test_a_list_may_name_a_part_of_the_files_in_any_order(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        put_sbd(tmp_path, stem, box(1))
    (tmp_path / "img/b.jpg").rename(tmp_path / "img/b.JPG")
    (tmp_path / "val.txt").write_text("\ufeffc\nb", encoding="utf-8")
    assert [ref.id for ref in open_dataset(f"sbd={tmp_path}")] == ["c#1", "b#1"]
    (tmp_path / "val.txt").write_text("c\nd\n")
    with pytest.raises(HrsegError, match=r"val\.txt, line 2: no file 'd' in .*img"):
        open_dataset(str(tmp_path))
    with pytest.raises(HrsegError, match=r"test\.txt: no such list; available splits: val"):
        open_dataset(f"{tmp_path}:split=test")


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_vocs_colours_are_its_indices(indices: list[int]) -> None:
    """The palette is the one of VOC's devkit: bits of the index spread over red, green and blue, high bits first."""
    palette = np.zeros((256, 3), int)
    for index in range(256):
        rest = index
        for shift in range(7, -1, -1):
            palette[index] |= [((rest >> channel) & 1) << shift for channel in range(3)]
            rest >>= 3
    colours = palette[np.array(indices)][None].astype(np.uint8)
    found = voc_indices(colours)
    assert found is not None
    assert found.tolist() == [indices]
    assert palette[[1, 255]].tolist() == [[128, 0, 0], [224, 224, 192]]
    assert voc_indices(colours + np.uint8(1)) is None


def test_voc_ids_whose_grey_values_collide_stay_apart(tmp_path: Path) -> None:
    """Indices 1 and 16 have the same grey value, 38."""
    indices = box(1)
    indices[8:10, 3:9], indices[11, :] = 16, 255
    colours = [0] * 768
    colours[3:6], colours[48:51], colours[765:] = [128, 0, 0], [0, 64, 0], [224, 224, 192]
    mask = Image.fromarray(indices)
    mask.putpalette(colours)
    put(tmp_path / "JPEGImages/q.jpg", picture())
    (tmp_path / "SegmentationObject").mkdir()
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("q\n")
    for mode in ("P", "RGB"):
        mask.convert(mode).save(tmp_path / "SegmentationObject/q.png")
        refs = open_dataset(str(tmp_path))
        assert [ref.instance for ref in refs] == [1, 16]
        assert [counts(load(ref).truth)["1"] for ref in refs] == [40, 12]
        assert counts(load(refs[0]).truth)["-1"] == 20


# ---- COCO+LVIS ----


def test_annotations_pickled_by_an_older_numpy_are_read_alike(tmp_path: Path) -> None:
    """Files published in 2021 name numpy.core, newer ones numpy._core; both hold rows of PNG bytes."""
    (old,) = (MINI / "LVIS/train/masks").glob("*.pickle")
    new = tmp_path / "x.pickle"
    content = old.read_bytes().replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    new.write_bytes(content[:3] + (len(content) - 11).to_bytes(8, "little") + content[11:])  # the frame is shorter
    layers, objects = load_pickle(new)
    assert [layer.data[:4] for layer in layers] == [b"\x89PNG"] * len(layers)
    assert (objects, len(layers)) == (load_pickle(old)[1], len(load_pickle(old)[0]))


def test_images_of_val_may_lie_with_those_of_train(tmp_path: Path) -> None:
    """LVIS took part of its val from COCO's train2017, and train2017.zip is unpacked into train/images/."""
    (name,) = (path.name for path in (MINI / "LVIS/train/images").iterdir())
    own, other = tmp_path / "val/images" / name, tmp_path / "train/images" / name
    for path in (own, other):
        shutil.copytree(MINI / "LVIS/train", path.parents[1])
    assert {ref.image for ref in open_dataset(f"LVIS={tmp_path}")} == {own}  # both are there: its own
    own.unlink()
    refs = open_dataset(f"LVIS={tmp_path}")
    assert {ref.image for ref in refs} == {other}
    assert [load(ref).truth.sum() for ref in refs] == [
        load(ref).truth.sum() for ref in open_dataset("LVIS:split=train", root=MINI)
    ]
    other.rename(own)
    assert {ref.image for ref in open_dataset(f"LVIS={tmp_path}:split=train")} == {other}  # no way back
    own.unlink()
    with pytest.raises(HrsegError, match=rf"val/images/{name}: no such file"):
        load(open_dataset(f"LVIS={tmp_path}")[0])


# ---- DAVIS-585 ----


@pytest.fixture
def davis585(tmp_path: Path) -> Path:
    for sequence in ("bear", "cat"):
        put(tmp_path / sequence / "00009.jpg", picture())
        put(tmp_path / sequence / "object1_00009.png", box())
        put(tmp_path / sequence / "init_stm_object1_00009.png", box(0))
        put(tmp_path / sequence / "init_sp_object1_00009.png", np.roll(box(), 3, 0))
    return tmp_path


@pytest.mark.parametrize(("option", "start"), [("", None), (":init=stm", "nothing"), (":init=sp", "moved")])
def test_davis585_starts_from_the_mask_that_is_asked_for(davis585: Path, option: str, start: str | None) -> None:
    refs = open_dataset(f"{davis585}{option}")
    assert [ref.id for ref in refs] == ["bear/object1_00009", "cat/object1_00009"]
    sample, used = load_with_rule(refs[1])
    assert used == "gt128"
    assert np.array_equal(sample.truth, box() // 255)
    if start is None:
        assert sample.initial is None
    else:
        assert sample.initial is not None
        assert sample.initial.dtype == np.float32
        expected = np.roll(box(), 3, 0) // 255 if start == "moved" else box(0)
        assert np.array_equal(sample.initial, expected)


def test_an_index_is_of_the_initial_masks_too(davis585: Path) -> None:
    listing = list_masks(f"{davis585}:init=stm")
    build_index(listing)
    put(davis585 / "cat/init_sp_object1_00009.png", box())
    assert is_fresh(listing)  # which does not start from that one
    os.utime(davis585 / "cat/init_stm_object1_00009.png", ns=(1, 1))
    assert not is_fresh(listing)


def test_davis585_names_what_is_missing(davis585: Path) -> None:
    (davis585 / "cat/init_sp_object1_00009.png").unlink()
    with pytest.raises(HrsegError, match=r"object1_00009\.png: no init_sp_object1_00009\.png next to it"):
        open_dataset(f"{davis585}:init=sp")
    with pytest.raises(UnknownName, match=r"unknown initial mask 'spp'.*'sp'"):
        open_dataset(f"{davis585}:init=spp")
    refs = open_dataset(f"{davis585}:init=stm")
    put(davis585 / "bear/init_stm_object1_00009.png", box()[:-1])
    with pytest.raises(HrsegError, match=r"init_stm_object1_00009\.png: 20x11"):
        load(refs[0])


# ---- pairs ----


@pytest.mark.parametrize(
    ("image", "mask", "images", "masks"),
    [
        ("im/{}.jpg", "gt/{}.png", "im", "gt"),  # DIS5K
        ("im/{}.JPG", "gt/{}.png", "im/*.jpg", "gt/*.png"),
        ("{}.jpg", "{}.png", "*.jpg", "*.png"),  # both in one folder: MSRA10K, ECSSD, DUTS, FSS-1000 in HQSeg-44K
        ("{}_im.jpg", "{}_gt.png", "*_im.jpg", "*_gt.png"),  # BIG
        ("s/{}/1.jpg", "s/{}/1.png", "s/*/*.jpg", "s/*/*.png"),  # FSS-1000
    ],
)
def test_pairs_by_pattern(tmp_path: Path, image: str, mask: str, images: str, masks: str) -> None:
    for stem in ("b", "a.x", "Ü"):
        put(tmp_path / image.format(stem), picture(), format="JPEG")
        put(tmp_path / mask.format(stem), box())
    put(tmp_path / image.format("stray"), picture(), format="JPEG")
    put(tmp_path / mask.format("other"), box())
    (tmp_path / "thumbs.db").write_bytes(b"")
    refs = open_listing(list_split(tmp_path, "part", "pairs", images=images, masks=masks, binarize="gt128"))
    suffix = "/1" if "/1." in image else ""
    assert [(ref.dataset, ref.id) for ref in refs] == [("part", stem + suffix) for stem in ("a.x", "b", "Ü")]
    assert all(load(ref).truth.sum() == 40 for ref in refs)
    assert open_dataset(f"part={tmp_path}:images={images},masks={masks}", binarize="gt128") == refs


# ---- options and manifests ----


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("SBD:spilt=train", "unknown option of sbd 'spilt'. Did you mean 'split'?"),
        ("SBD:split=", "write 'split=VALUE'"),
        ("GrabCut:split=train", "layout 'grabcut' has no option 'split'"),
        ("LVIS:split=train,stuff=yes", "unknown stuff=yes"),
        ("LVIS", "available splits: train"),
        ("GrabCut:images=data_GT", "layout 'pairs' also needs 'masks'"),
        ("SBD:name=other", "unknown option of sbd 'name'"),
    ],
)
def test_a_wrong_option_is_named(spec: str, complaint: str) -> None:
    with pytest.raises(HrsegError) as caught:
        open_dataset(spec, root=MINI)
    assert complaint in str(caught.value)


def test_a_folder_with_a_colon_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a:split=b"
    put(folder / "images/x.jpg", picture())
    put(folder / "masks/x.png", box())
    assert [ref.dataset for ref in open_dataset(str(folder))] == ["a:split=b"]


def test_the_pieces_of_hqseg44k_are_opened_as_its_manifest_says(tmp_path: Path) -> None:
    """A tiny copy in exactly its layout; each mask has a 128, which the rule of the manifest leaves out."""
    base = tmp_path / "hqseg44k"
    thin = base / "thin_object_detection"
    for images, masks in (
        (base / "DIS5K/DIS-VD/im", base / "DIS5K/DIS-VD/gt"),
        (thin / "ThinObject5K/images_test", thin / "ThinObject5K/masks_test"),
        (thin / "COIFT/images", thin / "COIFT/masks"),
        (thin / "HRSOD/images", thin / "HRSOD/masks_max255"),
    ):
        mask = box()
        mask[3, 3] = 128
        put(images / "a b.jpg", picture())
        put(masks / "a b.png", mask)
    pieces = list_parts("hqseg44k", root=tmp_path)
    assert [piece.name for piece in pieces] == ["dis5k", "thinobject5k", "coift", "hrsod"]
    for piece in pieces:
        (ref,) = expand(piece.masks, {})
        assert ref.id == "a b"
        assert counts(load(ref).truth) == {"0": 201, "1": 39}
    with pytest.raises(HrsegError, match=r"DIS-TR: not found; run 'hrseg prepare-data hqseg44k'"):
        list_parts("hqseg44k", split="train", root=tmp_path)


def test_pieces_of_one_set_get_names_of_their_own(tmp_path: Path) -> None:
    for folder in ("DIS5K/DIS-TR", "thin_object_detection/ThinObject5K", "cascade_psp/fss_all", "cascade_psp/DUTS-TR"):
        (tmp_path / "hqseg44k" / folder).mkdir(parents=True)
    for folder in ("DUTS-TE", "ecssd", "MSRA_10K"):
        (tmp_path / "hqseg44k/cascade_psp" / folder).mkdir()
    names = [piece.name for piece in list_parts("hqseg44k", split="train", root=tmp_path)]
    assert names == [
        "dis5k-train", "thinobject5k-train", "fss1000-train", "duts-train", "duts-test", "ecssd-train", "msra10k-train",
    ]  # fmt: skip


def test_references_of_every_layout_travel(davis585: Path) -> None:
    refs = open_dataset("LVIS:split=train,stuff=1", root=MINI) + open_dataset(f"{davis585}:init=sp")
    assert pickle.loads(pickle.dumps(refs)) == refs


def test_masks_named_as_other_programs_name_them(tmp_path: Path) -> None:
    """a_mask.png and b.jpg.png; an image that has such a name itself comes first."""
    pixels = np.zeros((8, 9), np.uint8)
    pixels[2:5, 2:5] = 255
    for folder, names in {
        "images": ("a.jpg", "b.jpg", "c.jpg", "c_mask.jpg"),
        "masks": ("a_mask.png", "b.jpg.png", "c_mask.png", "c.png"),
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(pixels).save(tmp_path / folder / name)
    found = {ref.image.name: ref.mask.name for ref in open_dataset(str(tmp_path))}
    assert found == {"a.jpg": "a_mask.png", "b.jpg": "b.jpg.png", "c.jpg": "c.png", "c_mask.jpg": "c_mask.png"}


def test_a_matlab_file_that_unpacks_without_an_end_is_refused(tmp_path: Path) -> None:
    """scipy would hold all of it: 140 MB from 140 kB here."""
    packed = zlib.compress(bytes(140 << 20), 9)
    head = b"MATLAB 5.0".ljust(124, b" ") + struct.pack("<H2s", 0x0100, b"IM")
    (tmp_path / "a.mat").write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(HrsegError, match=r"cannot be read as an SBD mask .more than 134 MB"):
        read_mask(tmp_path / "a.mat")
