"""Classical methods as click models: what clicks do to regions, and k-means against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hrseg_cli import catalog
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.classical import KMeans, Regions, Watershed, lab, segmentation

NAMES = ("kmeans", "mean_shift", "slic", "felzenszwalb", "random_walker", "watershed")


def scene() -> np.ndarray:
    """A red square on a green ground, with noise: uint8 (60, 80, 3)."""
    image = np.random.default_rng(0).integers(0, 20, (60, 80, 3), dtype=np.uint8)
    image[..., 1] += 120
    image[15:45, 20:60, :2] = image[15:45, 20:60, 1::-1]
    return image


def asked(image: np.ndarray, *clicks: tuple[int, int, bool]) -> tuple[Tensor, Tensor]:
    points = torch.full((1, 8, 3), -1.0)
    for number, (row, col, positive) in enumerate(clicks):
        points[0, number + (0 if positive else 4)] = torch.tensor([row, col, number])
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return torch.cat([picture, torch.zeros(1, 1, *image.shape[:2])], 1), points


@pytest.mark.parametrize("name", NAMES)
def test_clicks_get_what_they_point_at(name: str) -> None:
    options = {"slic": {"segments": 4}, "kmeans": {"clusters": 2, "compactness": 0.01}}.get(name, {})
    model = catalog.resolve("model", name)(**options)
    truth = np.zeros((60, 80), bool)
    truth[15:45, 20:60] = True
    clicks = [(30, 40, True), (2, 2, False)]
    mask = (model(*asked(scene(), *clicks))["logits"][0, 0] > 0).numpy()
    assert mask[30, 40]
    assert not mask[2, 2]
    if name != "slic":  # whose superpixels are of about one size
        assert (mask & truth).sum() / (mask | truth).sum() > 0.88  # outlines are regions of their own to one of them
    again = (model(*asked(scene(), *clicks))["logits"][0, 0] > 0).numpy()
    assert np.array_equal(mask, again), "the same every time"


class Halves(Regions):
    """Two regions: left and right."""

    def __init__(self) -> None:
        super().__init__("halves", 1000)

    def seen(self, image: np.ndarray) -> np.ndarray:
        return np.repeat(np.arange(2, dtype=np.int32), image.shape[1] // 2)[None].repeat(len(image), 0)


def test_regions_follow_their_clicks_and_otherwise_stay() -> None:
    image, points = asked(np.zeros((20, 40, 3), np.uint8), (10, 30, True))
    image[0, 3, :, :15] = 1  # three quarters of the left half
    mask = Halves()(image, points)["logits"][0, 0] > 0
    assert mask.all()
    image, points = asked(np.zeros((20, 40, 3), np.uint8), (10, 38, True), (10, 22, False))
    image[0, 3, :, :5] = 1
    mask = Halves()(image, points)["logits"][0, 0] > 0
    assert not mask[:, :20].any(), "a quarter is not enough"
    assert mask[10, 20:].nonzero().min() == 10, "clicks of both kinds share their region"


def test_kmeans_is_a_fixed_point_of_its_definition() -> None:
    """Every pixel belongs to the nearest mean of colour and position."""
    image = scene()
    model = KMeans(max_side=80, clusters=6)
    labels = model.seen(image)
    rows, cols = np.indices(labels.shape) * (60 / 80)
    points = np.concatenate([lab(image), rows[..., None], cols[..., None]], 2).reshape(-1, 5)
    means = np.stack([points[labels.ravel() == k].mean(0) for k in np.unique(labels)])
    nearest = np.square(points[:, None] - means).sum(2).argmin(1)
    assert (np.unique(labels)[nearest] == labels.ravel()).mean() > 0.98


def test_without_seeds_of_both_kinds_nothing_is_divided() -> None:
    image, points = asked(np.zeros((20, 30, 3), np.uint8), (10, 10, False))
    image[0, 3] = 1
    mask = Watershed()(image, points)["logits"] > 0
    assert mask.all()


def test_wrong_options_and_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"clusters": 0}, {"clusters": 1.5}, {"compactness": float("nan")}, {"max_side": 10**9}):
        with pytest.raises(ValueError, match="must be a number above 0"):
            KMeans(**options)  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "skimage.segmentation", None)
    with pytest.raises(HrsegError, match=r"`model` slic: needs scikit-image; run pip install 'hrseg\[classical\]'"):
        segmentation("slic")
