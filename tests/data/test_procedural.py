"""The drawn set must be the same everywhere, and its masks must be the truth about its pictures."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hrseg_cli.data.procedural import KINDS, draw, files, kind, layers, write
from hrseg_cli.data.procedural.parts import ShapePart, stroke
from hrseg_cli.data.procedural.raster import coverage_of
from hrseg_cli.errors import HrsegError

SIDE = 256
SEED = 2
QUICK = 23  # a seed whose first three scenes have few pieces


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One draw of each kind."""
    return {kind(SEED, index): draw(SEED, index, SIDE) for index in range(len(KINDS))}


def _hash(image: np.ndarray, coverage: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes() + coverage.tobytes()).hexdigest()


# --- The same everywhere ----------------------------------------------------------------------------------------------


def test_another_process_with_another_number_of_threads_draws_the_same_bytes(
    drawn: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    code = (
        "import cv2, hashlib\n"
        "from hrseg_cli.data.procedural import draw\n"
        "for threads, index in ((1, 2), (4, 6)):\n"
        "    cv2.setNumThreads(threads)\n"
        f"    image, coverage = draw({SEED}, index, {SIDE})\n"
        "    print(hashlib.sha256(image.tobytes() + coverage.tobytes()).hexdigest())\n"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.split() == [_hash(*drawn[kind(SEED, index)]) for index in (2, 6)]


def test_another_seed_or_index_is_another_picture() -> None:
    assert kind(1, 2) == kind(2, 2)  # a wheel: the seed changes more than the kind
    assert len({_hash(*draw(seed, index, 96)) for seed, index in ((1, 2), (1, 4), (2, 2))}) == 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), block=st.integers(0, 50))
def test_each_run_of_samples_shows_every_kind_once(seed: int, block: int) -> None:
    first = block * len(KINDS)
    assert sorted(kind(seed, first + k) for k in range(len(KINDS))) == sorted(KINDS)


def test_the_same_scene_at_another_size(drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Geometry lives in units of the longer side, or numbers at 1024 and 2048 would be about different objects."""
    for index in (2, 3, 5):
        small, large = draw(SEED, index, SIDE // 4)[1], drawn[kind(SEED, index)][1]
        shrunk = cv2.resize(large, small.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(float) - small).mean() < 0.2 * small.mean()  # another object: above 1


# --- Truth ------------------------------------------------------------------------------------------------------------


def test_size_and_type(drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for image, coverage in drawn.values():
        assert image.dtype == coverage.dtype == np.uint8
        assert image.shape == (*coverage.shape, 3)
        assert max(coverage.shape) == SIDE
        assert min(coverage.shape) >= SIDE * 0.6
    assert len({coverage.shape for _, coverage in drawn.values()}) > 1  # not all square


def test_there_is_always_something_to_click_on(drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for name, (_, coverage) in drawn.items():
        share = (coverage > 128).mean()
        assert 0.01 < share < 0.45, name


def test_edges_are_anti_aliased(drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for name, (_, coverage) in drawn.items():
        assert len(np.unique(coverage)) > 12, name
        assert {0, 255} <= set(np.unique(coverage).tolist()), name


def test_thin_kinds_are_thin(drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """A boundary metric needs objects that are mostly boundary: a 5x5 erosion takes most of them away."""

    def lost(name: str) -> float:
        mask = (drawn[name][1] > 128).astype(np.uint8)
        return 1 - float(cv2.erode(mask, np.ones((5, 5))).sum()) / float(mask.sum())

    assert min(lost(name) for name in ("lattice", "wire", "branch", "coral")) > 0.6
    assert lost("gear") < 0.6  # and not everything is a line


def test_the_picture_is_the_linear_blend_of_its_layers(drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Before lens and noise, image = cov * object + (1 - cov) * rest: what is left over is small and has no bias."""
    thing, rest, coverage = layers(SEED, 3, SIDE)
    share = coverage[..., None] / np.float32(255)
    blend = share * thing + (1 - share) * rest
    image = drawn[kind(SEED, 3)][0] / 255.0
    toned = 1.12 * blend / (1 + 0.18 * blend * blend)
    assert np.corrcoef(image.ravel(), toned.ravel())[0, 1] > 0.97
    assert np.abs((image - toned).mean()) < 0.01


def test_mask_edges_lie_on_image_edges(drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """The mask, moved by two pixels either way, fits the edges of the picture worse than where it is."""

    def steepness(values: np.ndarray) -> np.ndarray:
        return np.hypot(cv2.Sobel(values, cv2.CV_32F, 1, 0), cv2.Sobel(values, cv2.CV_32F, 0, 1))

    for name in ("gear", "wheel", "leaf"):
        image, coverage = drawn[name]
        edges = sum(steepness(image[..., channel].astype(np.float32)) for channel in range(3))
        rim = steepness(coverage.astype(np.float32))
        fit = {
            (row, col): float((edges * np.roll(rim, (row, col), (0, 1)))[4:-4, 4:-4].sum())
            for row in (-2, 0, 2)
            for col in (-2, 0, 2)
        }
        assert max(fit, key=fit.__getitem__) == (0, 0), name


@settings(max_examples=60, deadline=None)
@given(corners=st.lists(st.tuples(st.floats(2, 38), st.floats(2, 28)), min_size=3, max_size=3))
def test_coverage_of_a_triangle_is_its_area(corners: list[tuple[float, float]]) -> None:
    points = np.array(corners)
    (ax, ay), (bx, by) = points[1] - points[0], points[2] - points[0]
    area = 0.5 * abs(ax * by - ay * bx)
    around = float(np.hypot(*(points - np.roll(points, 1, axis=0)).T).sum())
    covered = float(coverage_of([ShapePart((points,))], (30, 40)).sum()) / 255
    assert area - 0.05 * around - 0.2 <= covered <= area + 0.2 * around + 0.2  # OpenCV fills outlines outwards


def test_coverage_of_strokes_is_their_width_times_their_length() -> None:
    """In every direction: each edge within a tenth of a pixel, and no bias over many."""
    rng = np.random.default_rng(0)
    for radius in (0.75, 1.5, 6.0):
        errors = []
        for angle in rng.uniform(0, 2 * np.pi, 40):
            centre, towards = 32 + rng.uniform(0, 1, 2), 20 * np.array([np.cos(angle), np.sin(angle)])
            line = stroke(np.stack([centre - towards, centre, centre + towards]), radius)
            covered = float(coverage_of([line], (64, 64)).sum()) / 255
            errors.append((covered - 80 * radius - np.pi * radius**2) / 80)
        assert np.abs(errors).max() < 0.1
        assert abs(np.mean(errors)) < 0.025


def test_coverage_is_aligned_with_pixels() -> None:
    """A square from (3, 2) to (7, 6) covers exactly these pixels, and in part those that it crosses."""
    square = np.array([[3.0, 2], [7, 2], [7, 6], [3, 6]])
    row, col = np.nonzero(coverage_of([ShapePart((square,))], (10, 12)) > 128)
    assert (row.min(), row.max(), col.min(), col.max()) == (2, 5, 3, 6)
    moved = coverage_of([ShapePart((square + 0.45,))], (10, 12))
    assert 100 < moved[4, 3] < 200
    assert moved[4, 5] == 255
    assert 100 < moved[4, 7] < 200


def test_a_cut_takes_away_and_paint_adds_nothing() -> None:
    square = np.array([[2.0, 2], [18, 2], [18, 18], [2, 18]])
    hole = ShapePart((0.5 * (square - 10) + 10,), role="cut")
    mark = stroke(np.array([[0.0, 1], [20, 1]]), 0.8, role="paint")
    coverage = coverage_of([ShapePart((square,)), hole, mark], (20, 20))
    assert coverage[10, 10] == 0
    assert coverage[4, 4] == 255
    assert coverage[0].max() == 0


# --- On disk ----------------------------------------------------------------------------------------------------------


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_of_some_kinds_is_part_of_the_set_of_all(tmp_path: Path) -> None:
    write(tmp_path / "some", 1, 96, QUICK, kinds=f"{kind(QUICK, 1)}+{kind(QUICK, 2)}")
    write(tmp_path / "all", 2, 96, QUICK)
    some, every = _bytes(tmp_path / "some"), _bytes(tmp_path / "all")
    assert [name for name in some if name.endswith(".jpg")] == [f"images/00001_{kind(QUICK, 1)}.jpg"]
    assert {name for name in some if name in every and some[name] == every[name]} == {
        name for name in some if name.startswith(("images", "masks"))
    }
    with pytest.raises(HrsegError, match="use another folder"):
        write(tmp_path / "some", 1, 96, QUICK)


def test_a_longer_set_begins_with_the_shorter_one(tmp_path: Path) -> None:
    write(tmp_path / "two", 2, 96, QUICK)
    write(tmp_path / "three", 3, 96, QUICK)
    short, long = _bytes(tmp_path / "two"), _bytes(tmp_path / "three")
    pairs = short.pop("pairs.csv").decode(), long["pairs.csv"].decode()
    assert short.items() <= long.items()
    assert pairs[1].startswith(pairs[0])
    assert len(pairs[1].splitlines()) == 4


def test_what_is_on_disk_is_what_was_drawn(tmp_path: Path) -> None:
    seen: list[int] = []
    write(tmp_path, 2, 96, QUICK, seen.append)
    assert seen == [1, 2]
    image_name, mask_name = (tmp_path / "pairs.csv").read_text().splitlines()[2].split(",")
    assert image_name == f"images/00001_{kind(QUICK, 1)}.jpg"
    image, coverage = draw(QUICK, 1, 96)
    with Image.open(tmp_path / mask_name) as mask, Image.open(tmp_path / image_name) as stored:
        assert np.array_equal(np.asarray(mask), coverage)
        pixels = np.asarray(stored).astype(int)
    off, swapped = np.abs(pixels - image).mean(), np.abs(pixels - image[..., ::-1]).mean()
    assert off < 6
    assert off < 0.7 * swapped


def test_a_broken_off_set_is_finished_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3, 96, QUICK)
    whole = _bytes(tmp_path)
    (tmp_path / "masks" / f"00001_{kind(QUICK, 1)}.png").unlink()
    (tmp_path / "pairs.csv").unlink()
    drawn: list[int] = []

    def watched(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(index)
        return draw(seed, index, size)

    monkeypatch.setattr(files, "draw", watched)
    write(tmp_path, 3, 96, QUICK)
    assert drawn == [1]
    assert _bytes(tmp_path) == whole


def test_two_sets_are_not_mixed_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path, 1, 96, QUICK)
    with pytest.raises(HrsegError, match="use another folder"):
        write(tmp_path, 1, 128, QUICK)


@pytest.mark.parametrize(("seed", "index", "size"), [(-1, 0, 96), (0, -1, 96), (0, 0, 63), (0, 0, 4097)])
def test_impossible_arguments_are_refused(seed: int, index: int, size: int) -> None:
    with pytest.raises(HrsegError, match="must"):
        draw(seed, index, size)
