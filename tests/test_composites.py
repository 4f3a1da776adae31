"""recipes/paper/composites.py: picture and mask agree, parts share no photograph, and a rerun changes nothing."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from hrseg_cli.data.datasets import in_held_out, open_dataset
from hrseg_cli.data.samples import load
from hrseg_cli.data.views import Images, load_scene
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import data_folder

SCRIPT = SimpleNamespace(**runpy.run_path(str(data_folder("recipes") / "paper" / "composites.py")))
GREYS = range(20, 220, 20)


def photographs(folder: Path, *, objects: bool) -> Path:
    """Ten photographs, each of a grey of its own: discs in two frames of five videos, or a bar at the left edge."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, grey in enumerate(GREYS):
        mask = np.zeros((60, 80), np.uint8)
        name = f"v{number // 2}_{number % 2}" if objects else f"g{number}"
        if objects:
            cv2.circle(mask, (40, 30), 14 + number // 2, 255, -1)
        else:
            mask[:, :4] = 255
        image = np.full((60, 80, 3), grey, np.uint8)
        image[mask > 0] = (200, 40, 40) if objects else grey
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments that name the photographs; half of them are held out."""
    home = tmp_path_factory.mktemp("sets")
    discs, grounds = photographs(home / "discs", objects=True), photographs(home / "grounds", objects=False)
    return ["--object", f"{discs}:group=(.+)_", "--background", str(grounds), "--share", "0.5", "--size", "200"]


def made(out: Path, sets: list[str], held: int = 3, kept: int = 4) -> dict[str, bytes]:
    SCRIPT.main([str(out), *sets, "--held", str(held), "--kept", str(kept)])
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.*g"))}


def test_the_same_arguments_give_the_same_pictures_and_a_rerun_completes_them(tmp_path: Path, sets: list[str]) -> None:
    first = made(tmp_path / "one", sets)
    assert len(first) == 2 * (3 + 4)
    assert made(tmp_path / "two", sets, held=2, kept=2).items() < first.items()
    next((tmp_path / "two" / "masks").iterdir()).unlink()  # as if stopped between the two files
    assert made(tmp_path / "two", sets) == first
    with pytest.raises(HrsegError, match="other arguments"):
        made(tmp_path / "two", [*sets, "--seed", "1"])


def test_held_out_photographs_are_in_no_other_picture(tmp_path: Path, sets: list[str]) -> None:
    made(tmp_path, sets, held=12, kept=12)
    greys = dict(zip((f"g{number}" for number in range(10)), GREYS, strict=True))
    held = {ref.image.stem for ref in open_dataset(sets[3]) if in_held_out(ref, 0.5)}
    assert 0 < len(held) < 10
    for part in ("held", "kept"):
        seen = set()
        for ref in open_dataset(f"{tmp_path}:{part}=0.5,group=(.+)-\\d+$"):
            sample = load(ref)
            level = np.median(sample.image[sample.truth == 0])
            ground = min(greys, key=lambda name: abs(greys[name] - level))
            assert (ground in held) == (part == "held")
            seen.add(ref.id)
        assert len(seen) == 12  # the key of each file name is on the side of its photographs


def test_the_mask_is_where_the_object_outweighs_the_background(sets: list[str]) -> None:
    """Object and background have one colour each, so the picture tells what it was blended with."""
    discs, grounds = open_dataset(sets[1].partition(":")[0]), Images(open_dataset(sets[3]))
    rng = np.random.default_rng(0)
    for ref in discs[::3]:
        donor = load(ref)
        donor = replace(donor, image=np.full_like(donor.image, (200, 40, 40)))
        picture, solid, _ = SCRIPT.pasted(donor, load_scene(grounds[0]), 200, rng)
        assert picture.shape == (150, 200, 3)
        inside = cv2.erode(solid.view(np.uint8), np.ones((9, 9))) > 0
        outside = cv2.dilate(solid.view(np.uint8), np.ones((9, 9))) == 0
        near, far = (np.median(picture[where], axis=0).astype(float) for where in (inside, outside))
        weight = (picture - far) @ (near - far) / ((near - far) @ (near - far))
        assert solid[weight > 0.55].all()
        assert not solid[weight < 0.45].any()
        assert ((weight > 0.1) & (weight < 0.9)).any()  # as soft as an enlarged photograph


def test_an_object_is_not_sharper_than_its_background_and_has_a_round_outline(sets: list[str]) -> None:
    """A disc stays one: it is enlarged as its background or less, without the steps of its pixels."""
    grounds = Images(open_dataset(sets[3]))
    for ref in open_dataset(sets[1].partition(":")[0])[::3]:
        donor = load(ref)
        _, solid, _ = SCRIPT.pasted(donor, load_scene(grounds[0]), 200, np.random.default_rng(1))
        assert solid.sum() <= (200 / 80) ** 2 * (donor.truth == 1).sum()
        ((outline,), _) = cv2.findContours(solid.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        inner = outline[((outline[:, 0] > 0) & (outline[:, 0] < (199, 149))).all(axis=1), 0]
        (col, row), radius = cv2.minEnclosingCircle(inner)
        assert np.abs(np.hypot(inner[:, 0] - col, inner[:, 1] - row) - radius).max() < 2.5


def test_without_room_there_is_one_line(tmp_path: Path, sets: list[str]) -> None:
    full = photographs(tmp_path / "full", objects=False)
    for path in (full / "masks").iterdir():
        Image.fromarray(np.full((60, 80), 255, np.uint8)).save(path)
    with pytest.raises(HrsegError, match="no background of another dataset has room for v"):
        made(tmp_path / "out", [*sets[:2], "--background", str(full), *sets[4:]])
