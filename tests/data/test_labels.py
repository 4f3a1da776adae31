"""The table of docs/data.md against the code, in every kind of file that shows the same picture; then what files of
other people hold."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.labels import AUTO, RULES, binarize, read_object, truth_of_mask
from hrseg_cli.data.pixels import read_mask
from hrseg_cli.data.samples import load
from hrseg_cli.errors import HrsegError

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
VOC = [  # its palette: bit k of an index is bit 7 - k // 3 of channel k % 3
    sum((index >> k & 1) << 7 - k // 3 for k in range(channel, 8, 3)) for index in range(256) for channel in range(3)
]


class Row(NamedTuple):
    """A line of the table. objects: None where the mask is refused."""

    rule: str
    values: list[int]
    where: str
    objects: set[int] | None
    ignored: set[int]
    used: str


def numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in filter(None, text.split(", ")):
        low, dots, high = part.partition("..")
        found += range(int(low), int(high) + 1) if dots else [int(low)]
    return found


def rows() -> Iterator[Row]:
    text = DOCUMENT.read_text(encoding="utf-8")
    for line in re.search(r"\n\| `--binarize` \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)[1].splitlines():  # type: ignore[index]
        rule, values, objects, ignored, used = (cell.strip() for cell in line.strip("|").split("|"))
        listed, _, where = values.partition(" in ")
        yield Row(
            rule.strip("`"),
            list(range(256)) if listed == "all" else numbers(listed),
            where,
            None if objects == "refused" else set(numbers(objects)),
            set(numbers(ignored)),
            used.strip("`"),
        )


def areas(values: list[int]) -> np.ndarray:
    """A field of 4x4 pixels for each value."""
    side = int(np.ceil(len(values) ** 0.5))
    field = np.resize(np.array(values, np.uint8), (side, max(side, 2)))
    return np.kron(field, np.ones((4, 4), np.uint8))


def soft_edge(values: list[int]) -> np.ndarray:
    """A disk whose rim runs through the values, as a drawing program softens it."""
    away = np.hypot(*(np.mgrid[:60, :60] - 30))
    return np.array(values, np.uint8)[np.rint(np.clip((20 - away) / 3 + 0.5, 0, 1) * (len(values) - 1)).astype(int)]


def drawn(row: Row) -> np.ndarray:
    return soft_edge(row.values) if row.where == "a soft edge" else areas(row.values)


def palette_of(grey: np.ndarray, order: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """The picture with its greys in another order in a palette."""
    greys = order(np.unique(grey))
    index = np.zeros(256, np.uint8)
    index[greys] = np.arange(len(greys))
    image = Image.fromarray(index[grey])
    image.putpalette(np.repeat(greys, 3).tolist())
    return image


FORMS: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "L.png": Image.fromarray,
    "L.tif": Image.fromarray,
    "L.bmp": Image.fromarray,
    "L.gif": Image.fromarray,
    "L.pgm": Image.fromarray,
    "P.png": lambda v: Image.fromarray(v).convert("P"),
    "dark first.png": lambda v: palette_of(v, np.sort),
    "bright first.gif": lambda v: palette_of(v, lambda greys: np.sort(greys)[::-1]),
    "quantised.png": lambda v: Image.fromarray(v).convert("RGB").quantize(256),
    "RGB.png": lambda v: Image.fromarray(v).convert("RGB"),
    "LA.png": lambda v: Image.fromarray(v).convert("LA"),
    "RGBA.png": lambda v: Image.fromarray(v).convert("RGBA"),
    "lossless.webp": lambda v: Image.fromarray(v).convert("RGB"),
    "16 bits.png": lambda v: Image.fromarray(v.astype(np.uint16) * 257),
    "8 of 16 bits.png": lambda v: Image.fromarray(v.astype(np.uint16)),
    "32 bits.tif": lambda v: Image.fromarray(v.astype(np.int32)),
    "float.tif": lambda v: Image.fromarray(v.astype(np.float32)),
    "1 bit.png": lambda v: Image.fromarray(v > 0),
    "VOC.png": lambda v: in_palette(v),
    "VOC as RGB.png": lambda v: in_palette(v).convert("RGB"),
}


def save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))
    return path


def in_palette(indices: np.ndarray, palette: list[int] = VOC) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(palette)
    return image


def values_read(mask: np.ndarray, path: Path, rule: str = "auto") -> tuple[set[int], set[int], str]:
    """Which of the values that were drawn are object and which ignored, by reading the file; and the rule used."""
    truth, used = truth_of_mask(path, read_mask(path), rule)  # type: ignore[arg-type]
    for value in np.unique(mask):
        assert len(np.unique(truth[mask == value])) == 1
    return {int(v) for v in np.unique(mask[truth == 1])}, {int(v) for v in np.unique(mask[truth == -1])}, used


# ---- the table ----


def test_the_table_tells_every_rule_and_every_choice() -> None:
    found = list(rows())
    assert {row.rule for row in found} == {*RULES, "auto"}
    assert {row.rule: (row.objects, row.ignored) for row in found if row.rule != "auto"} == {
        rule: (set(objects), set(ignored)) for rule, (objects, ignored) in RULES.items()
    }
    assert {row.used for row in found if row.rule == "auto"} >= {rule for _, rule in AUTO} | {"gt128"}
    assert any(row.objects is None for row in found)


def forms_of(row: Row) -> list[str]:
    """The kinds of file that can hold it."""
    if row.where == "a palette of colours":
        return ["VOC.png", "VOC as RGB.png"]
    return [form for form in FORMS if not form.startswith("VOC") and (form != "1 bit.png" or row.values == [0, 255])]


@pytest.mark.parametrize(
    "row", list(rows()), ids=lambda row: f"{row.rule} {row.values[:4]}{len(row.values)} {row.where}"
)
def test_each_line_of_the_table_in_every_file(tmp_path: Path, row: Row) -> None:
    mask = drawn(row)
    there = set(np.unique(mask).tolist())
    for form in forms_of(row):
        path = save(tmp_path / form, FORMS[form](mask))
        if row.objects is None:
            with pytest.raises(HrsegError, match="`binarize`") as caught:
                load_only(tmp_path / form.replace(".", " "), path, mask.shape)
            assert str(caught.value).startswith(str(tmp_path / form.replace(".", " "))), form
            assert "\n" not in str(caught.value)
            continue
        objects, ignored, used = values_read(mask, path, row.rule)
        assert (objects, ignored) == (row.objects & there, row.ignored & there), form
        assert used == ("nonzero" if form == "1 bit.png" and row.rule == "auto" else row.used), form


def load_only(tmp_path: Path, mask: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The truth of a dataset that holds one mask."""
    save(tmp_path / "d/images/a.png", Image.new("RGB", shape[::-1]))
    moved = tmp_path / "d/masks" / f"a{mask.suffix}"
    moved.parent.mkdir(exist_ok=True)
    mask.rename(moved)
    (ref,) = open_dataset(str(tmp_path / "d"))
    return load(ref).truth


# ---- soft masks are one object, ids are not ----


def disk(side: int = 200) -> np.ndarray:
    return np.where(np.hypot(*(np.mgrid[:side, :side] - side / 2)) < side / 3.1, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("radius", [0.5, 1, 3, 8, 20])
def test_a_blurred_mask_is_cut_at_half(radius: float) -> None:
    soft = np.array(Image.fromarray(disk()).filter(ImageFilter.GaussianBlur(radius)))
    truth, used = binarize(soft, "auto")
    assert used == "gt128"
    assert np.array_equal(truth == 1, soft > 128)


@pytest.mark.parametrize("quality", [10, 30, 60, 75, 90, 100])
@pytest.mark.parametrize("shape", ["disk", "box", "wires"])
def test_a_mask_saved_as_jpeg_is_one_object(tmp_path: Path, quality: int, shape: str) -> None:
    image = Image.fromarray(disk() if shape == "disk" else np.zeros((200, 200), np.uint8))
    if shape == "box":
        ImageDraw.Draw(image).rectangle((33, 41, 150, 163), fill=255)
    if shape == "wires":
        for k in range(20, 180, 23):
            ImageDraw.Draw(image).line((k, 5, 199 - k // 2, 190), fill=255, width=2)
    image.save(tmp_path / "a.jpg", quality=quality)
    truth, _ = truth_of_mask(tmp_path / "a.jpg", read_mask(tmp_path / "a.jpg"), "auto")
    assert ((truth == 1) != (np.array(image) > 128)).mean() < 0.02


def cells(ids: list[int], high: int = 2, wide: int = 3) -> np.ndarray:
    """A cell for each id, a pixel apart."""
    mask = np.zeros((20 * (high + 1), 20 * (wide + 1)), np.uint16)
    for k, value in enumerate(ids):
        row, col = divmod(k, 20)
        mask[row * (high + 1) : (row + 1) * (high + 1) - 1, col * (wide + 1) : (col + 1) * (wide + 1) - 1] = value
    return mask if max(ids) > 255 else mask.astype(np.uint8)


@pytest.mark.parametrize(
    "ids",
    [
        [*range(1, 301)],
        [*range(1, 201)],
        [*range(1, 256)],
        [50, 100, 150, 200],
        [240, 245, 250],
        [1, 2, 3, 4, 255],
        [*range(1, 31), 65535],
        [1000, 20000, 40000, 65535],
    ],
)
def test_ids_without_instances_are_told(tmp_path: Path, ids: list[int]) -> None:
    """Half of the cells became one object, the others background."""
    mask = cells(ids)
    with pytest.raises(HrsegError, match=r"values seen: 0, .*`instances`.*`binarize` nonzero"):
        load_only(tmp_path, save(tmp_path / "a.png", Image.fromarray(mask)), mask.shape)
    for rule in ("nonzero", "void255"):  # none of them gets lost among the 16 bits
        truth, _ = binarize(mask, rule)  # type: ignore[arg-type]
        void = mask == (65535 if mask.max() > 255 else 255) if rule == "void255" else np.zeros(mask.shape, bool)
        assert np.array_equal(truth == 1, (mask > 0) & ~void)


@pytest.mark.parametrize("kind", ["a.jpg", "a.webp", "a.jp2", "a.tif"])
@pytest.mark.parametrize("values", [[100, 200], [1, 255]])
def test_ids_in_a_lossy_file_are_refused(tmp_path: Path, kind: str, values: list[int]) -> None:
    mask = np.zeros((96, 96), np.uint8)
    mask[8:50, 8:50], mask[60:90, 20:90] = values
    path = tmp_path / kind
    Image.fromarray(mask).save(path, quality=80, **({"compression": "jpeg"} if kind == "a.tif" else {}))
    if kind == "a.jpg":
        with pytest.raises(HrsegError, match=r"lossy.*`instances`"):
            truth_of_mask(path, read_mask(path), "auto")
    (tmp_path / "d/masks").mkdir(parents=True)
    save(tmp_path / "d/images/a.png", Image.new("RGB", (96, 96)))
    path.rename(tmp_path / "d/masks" / kind)
    with pytest.raises(HrsegError, match=rf"{kind}: a lossy format destroys ids; save the mask as PNG"):
        open_dataset(str(tmp_path / "d"), instances=True)


def test_ids_in_a_lossless_webp_are_objects(tmp_path: Path) -> None:
    mask = areas([0, 3, 9, 200])
    save(tmp_path / "d/masks/a.webp", Image.fromarray(mask).convert("RGB"))
    save(tmp_path / "d/images/a.png", Image.fromarray(mask))
    assert [ref.instance for ref in open_dataset(str(tmp_path / "d"), instances=True)] == [3, 9, 200]


# ---- palettes and colours ----


@pytest.mark.parametrize("form", ["palette", "colours"])
@pytest.mark.parametrize(("ids", "objects", "ignored"), [([0, 1], {1}, set()), ([0, 3, 255], {3}, {255})])
def test_a_label_of_vocs_palette_is_read_from_indices_and_from_colours(
    tmp_path: Path, form: str, ids: list[int], objects: set[int], ignored: set[int]
) -> None:
    """By brightness (128, 0, 0) would be ignored, and the void of (224, 224, 192) the object."""
    mask, image = areas(ids), in_palette(areas(ids))
    path = save(tmp_path / "a.png", image if form == "palette" else image.convert("RGB"))
    assert values_read(mask, path)[:2] == (objects, ignored)


def test_a_grey_of_vocs_palette_is_a_label(tmp_path: Path) -> None:
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128, 0, 128, 128, 128, 128, 128]
    assert values_read(areas([0, 7]), save(tmp_path / "a.png", in_palette(areas([0, 7]), palette)))[0] == {7}


def test_a_palette_of_one_colour_holds_labels(tmp_path: Path) -> None:
    assert values_read(areas([0, 1]), save(tmp_path / "a.png", in_palette(areas([0, 1]), [0] * 768)))[0] == {1}


def test_a_grey_picture_in_a_browsers_palette_is_not_all_object(tmp_path: Path) -> None:
    """Its black is index 10: as a label all of it would be object."""
    mask = areas([0, 255])
    path = save(tmp_path / "a.png", Image.fromarray(mask).convert("RGB").convert("P"))
    assert values_read(mask, path)[0] == {255}


def test_one_colour_is_an_object_and_several_are_not(tmp_path: Path) -> None:
    soft = soft_edge([*range(256)])
    green = np.dstack([soft // 4, soft, soft // 2])
    truth, _ = truth_of_mask(path := save(tmp_path / "a.png", Image.fromarray(green)), read_mask(path), "auto")
    assert np.array_equal(truth == 1, soft > 128)
    two = np.zeros((40, 40, 3), np.uint8)
    two[5:15, 5:35], two[25:35, 5:35] = (255, 0, 10), (0, 10, 255)
    with pytest.raises(HrsegError, match=r"two\.png: several colours.*`instances`"):
        truth_of_mask(path := save(tmp_path / "two.png", Image.fromarray(two)), read_mask(path), "auto")
    assert truth_of_mask(path, read_mask(path), "nonzero")[0].sum() == 600


@pytest.mark.parametrize("colours", [(128, 0, 0), (10, 200, 30)])
def test_an_optimised_palette_is_not_inverted(tmp_path: Path, colours: tuple[int, int, int]) -> None:
    """A program that makes files smaller may number the object before the black ground."""
    path = save(tmp_path / "a.png", in_palette(areas([0, 1]), [*colours, 0, 0, 0]))
    assert values_read(areas([0, 1]), path)[0] == {0}
    save(tmp_path / "d/images/a.png", Image.new("RGB", areas([0, 1]).shape[::-1]))
    (tmp_path / "d/masks").mkdir()
    path.rename(tmp_path / "d/masks/a.png")
    (ref,) = open_dataset(str(tmp_path / "d"), instances=True)
    assert np.array_equal(load(ref).truth == 1, areas([0, 1]) == 0)


def test_vocs_void_is_known_by_its_colour_in_a_gif(tmp_path: Path) -> None:
    """Which numbers its colours 0, 1, 2."""
    mask = areas([0, 5, 255])
    path = save(tmp_path / "a.gif", in_palette(mask))
    assert set(np.unique(read_mask(path).values)) == {0, 1, 2}
    assert values_read(mask, path) == ({5}, {255}, "void255")


@pytest.mark.parametrize("rule", ["gt128", "void128", "grabcut", "nonzero"])
def test_a_rule_that_is_asked_for_reads_colours_alike_in_a_palette(tmp_path: Path, rule: str) -> None:
    image = in_palette(areas([0, 1, 2, 3]), [0, 0, 0, 200, 10, 10, 0, 128, 0, 9, 9, 20])
    index, colour = save(tmp_path / "p.png", image), save(tmp_path / "c.png", image.convert("RGB"))
    one, other = (truth_of_mask(path, read_mask(path), rule)[0] for path in (index, colour))  # type: ignore[arg-type]
    assert np.array_equal(one, other)
    assert (one == 1).any()


# ---- alpha ----


def cutout(colours: np.ndarray, mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colours, mask]))


def two_colours() -> np.ndarray:
    image = np.full((200, 200, 3), (20, 120, 40), np.uint8)
    image[:, 60:100], image[:, 100:] = (70, 20, 20), (200, 60, 50)
    return image


@pytest.mark.parametrize("kind", ["cut.png", "keep.png", "soft.png", "grey.png", "palette.png", "key.png", "cut.webp"])
def test_a_cut_out_is_read_by_its_alpha(tmp_path: Path, kind: str) -> None:
    """As hrseg writes it, black where it is transparent; as GIMP does, with the colours kept below."""
    mask, image = disk(), two_colours()
    shape = mask > 128
    picture = cutout(image if kind == "keep.png" else image * shape[:, :, None], mask)
    if kind == "soft.png":
        mask = np.array(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(1)))
        picture = cutout(image, mask)
    elif kind == "grey.png":
        picture = picture.convert("LA")
    elif kind == "palette.png":
        picture = in_palette(np.where(shape, 1 + (np.arange(200) > 99), 0).astype(np.uint8), [0, 0, 0, 70, 20, 20, 200])
        picture.info["transparency"] = 0
    elif kind == "key.png":  # one colour is declared transparent
        picture = Image.fromarray(image * shape[:, :, None])
        picture.info["transparency"] = (0, 0, 0)
    path = save(tmp_path / kind, picture)
    assert np.array_equal(read_object(path, (200, 200)), mask > 128)
    assert np.array_equal(truth_of_mask(path, read_mask(path), "auto")[0] == 1, mask > 128)


def test_a_mask_with_clear_corners_is_not_taken_for_a_cut_out(tmp_path: Path) -> None:
    alpha = np.full((200, 200), 255, np.uint8)
    alpha[:20, :20] = 0
    save(tmp_path / "a.png", cutout(np.dstack([disk()] * 3), alpha))
    with pytest.raises(HrsegError, match=r"a\.png: values seen: 0, 255 where it is not transparent"):
        read_object(tmp_path / "a.png", (200, 200))


# ---- masks to start from ----


@pytest.mark.parametrize("form", ["255.png", "1.png", "palette.png", "1 bit.png", "16 bits.png", "jpeg.jpg"])
def test_a_mask_to_start_from_is_read_as_a_truth_is(tmp_path: Path, form: str) -> None:
    mask = disk()
    picture = {
        "1.png": Image.fromarray(mask // 255),
        "palette.png": in_palette(mask // 255),
        "1 bit.png": Image.fromarray(mask > 0),
        "16 bits.png": Image.fromarray(mask.astype(np.uint16) * 257),
    }.get(form, Image.fromarray(mask))
    path = save(tmp_path / "seq" / "init_stm_object1_00000.png", picture) if form != "jpeg.jpg" else None
    if path is None:
        assert (read_object(save(tmp_path / form, picture), (200, 200)) != (mask > 128)).mean() < 0.01
        return
    save(tmp_path / "seq/00000.jpg", Image.new("RGB", (200, 200)))
    save(tmp_path / "seq/object1_00000.png", Image.fromarray(mask))
    initial = load(open_dataset(f"davis585={tmp_path}:init=stm")[0]).initial
    assert initial is not None
    assert np.array_equal(initial, mask > 128)


def test_a_mask_to_start_from_is_never_empty_without_a_word(tmp_path: Path) -> None:
    empty = save(tmp_path / "empty.png", Image.new("L", (20, 10)))
    assert not read_object(empty, (10, 20)).any()
    dim = save(tmp_path / "dim.png", Image.fromarray(areas([0, 3])))
    with pytest.raises(HrsegError, match=r"dim\.png: no object pixel under rule 'void128'; values seen: 0, 3; save it"):
        read_object(dim, read_mask(dim).values.shape)  # type: ignore[arg-type]
    with pytest.raises(HrsegError, match=r"dim\.png: no object pixel.*add `binarize` nonzero"):
        read_object(dim, read_mask(dim).values.shape, "gt128")  # type: ignore[arg-type]
    with pytest.raises(HrsegError, match=r"dim\.png: .* pixels, but photo\.jpg has"):
        read_object(dim, (3, 3), owner=Path("photo.jpg"))


def test_16_bit_colours_keep_their_small_values(tmp_path: Path) -> None:
    """Pillow reads the upper 8 bits: a 0/1 mask would be empty."""
    mask = (disk() // 255).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([mask] * 3))
    assert np.array_equal(read_object(tmp_path / "a.png", (200, 200)), mask > 0)


def test_a_one_that_jpeg_has_made_of_a_zero_is_no_label() -> None:
    """A box saved at quality 100 comes back as 0, 1 and 255."""
    labels = areas([0, 1, 255])
    assert binarize(labels, "auto")[1] == "void255"
    with pytest.raises(ValueError, match="values seen"):
        binarize(labels, "auto", lossy=True)
    specks = disk()
    specks[::7, ::7][specks[::7, ::7] == 0] = 1
    with pytest.raises(ValueError, match="values seen: 0, 1, 255"):
        binarize(specks, "auto")
    assert binarize(specks, "auto", lossy=True)[1] == "gt128"
