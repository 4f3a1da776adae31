"""Click maps compared with RITM's, and windowed drawing compared with full maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import GOLDEN

from hrseg_cli.models.parts.click_maps import disk_maps, distance_maps

RECORDED = np.load(GOLDEN / "click_maps.npz")


@pytest.mark.parametrize(
    ("name", "draw", "radius"),
    [
        ("disk5", disk_maps, 5),
        ("disk3", disk_maps, 3),
        ("dist5", distance_maps, 5),
        ("dist260", distance_maps, 260),
    ],
)
def test_maps_are_the_recorded_ones(name: str, draw: object, radius: float) -> None:
    """Fractional clicks, clicks on and beyond the border, one negative coordinate, empty sides."""
    maps = draw(torch.from_numpy(RECORDED["points"]), 48, 64, radius)  # type: ignore[operator]
    np.testing.assert_allclose(maps.numpy(), RECORDED[name], atol=0 if "disk" in name else 1e-6)


coordinate = st.floats(-12, 60, allow_nan=False).map(lambda v: round(v, 3))


@given(st.lists(st.tuples(coordinate, coordinate), min_size=2, max_size=8), st.sampled_from([1.0, 3.0, 5.0]))
def test_windows_equal_the_whole_plane(clicks: list[tuple[float, float]], radius: float) -> None:
    """Drawing only a window around each click gives the same as comparing every pixel with every click."""
    clicks = clicks[: len(clicks) // 2 * 2]
    points = torch.tensor([[(r, c, i) for i, (r, c) in enumerate(clicks)]], dtype=torch.float64)
    maps = disk_maps(points, 40, 44, radius)
    rows, cols = torch.arange(40.0, dtype=torch.float64), torch.arange(44.0, dtype=torch.float64)
    expected = torch.zeros(2, 40, 44)
    for slot, (row, col) in enumerate(clicks):
        if max(row, col) < 0:
            continue
        squared = (rows - row).float().square()[:, None] + (cols - col).float().square()[None, :]
        expected[int(slot >= len(clicks) // 2)] += (squared <= radius * radius).float()
    assert torch.equal(maps[0], expected.clamp(max=1))


def test_memory_does_not_grow_with_clicks() -> None:
    """A map per click would take 1 MiB each at 512x512; 400 clicks must not raise peak memory."""
    peaks = []
    for count in (2, 400):
        points = torch.rand(1, count, 3, dtype=torch.float64) * 500
        with torch.profiler.profile(profile_memory=True) as profile:
            disk_maps(points, 512, 512, 5)
        peaks.append(max(event.self_cpu_memory_usage for event in profile.key_averages()))
    assert peaks[1] < 2 * peaks[0]
