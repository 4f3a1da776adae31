"""A share of a dataset that training never sees: the same on every machine, and a video on one side."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrseg_cli.data.datasets import in_held_out, open_dataset
from hrseg_cli.errors import HrsegError

GROUP = r"group=(.+)_\d+$"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty videos of three frames."""
    folder = tmp_path_factory.mktemp("data") / "videos"
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 255
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
        for video in range(40):
            for frame in range(3):
                Image.fromarray(mask).save(folder / kind / f"v{video}_{frame}.png")
    return folder


def test_held_and_kept_are_the_two_halves_of_a_dataset(videos: Path) -> None:
    held = {ref.id for ref in open_dataset(f"{videos}:held=0.3")}
    kept = {ref.id for ref in open_dataset(f"{videos}:kept=0.3")}
    assert held | kept == {ref.id for ref in open_dataset(str(videos))}
    assert not held & kept
    assert len(held) == 26  # a hash of the names decides: the same on every machine


def test_a_video_stays_on_one_side(videos: Path) -> None:
    held = [ref.id for ref in open_dataset(f"{videos}:held=0.3,{GROUP}")]
    for video in {name.partition("_")[0] for name in held}:
        assert {f"{video}_{frame}" for frame in range(3)} <= set(held)
    assert 0 < len(held) < 120


def test_a_folder_can_name_a_video(videos: Path, tmp_path: Path) -> None:
    """Frames as VIDEO/00001.png, two objects a frame: whole videos, and not all videos with a frame 00001."""
    pixels = (videos / "masks" / "v0_0.png").read_bytes()
    for video in range(20):
        for kind, names in (("images", ["00001", "00002"]), ("masks", ["00001_0", "00001_1", "00002"])):
            (tmp_path / kind / f"v{video}").mkdir(parents=True)
            for name in names:
                (tmp_path / kind / f"v{video}" / f"{name}.png").write_bytes(pixels)
    held = [ref.id for ref in open_dataset(f"{tmp_path}:held=0.3,group=(.+)/")]
    found = {name.partition("/")[0] for name in held}
    assert 1 < len(found) < 20
    assert len(held) == 3 * len(found)


def test_without_folders_a_group_is_what_it_was(videos: Path) -> None:
    """The key is the bracket's text on the bare name: shares of existing sets must not move."""
    for ref in open_dataset(str(videos)):
        video = ref.id.partition("_")[0].encode()
        assert in_held_out(ref, 0.3, r"(.+)_\d+$") == (int.from_bytes(hashlib.sha256(video).digest()[:8]) < 0.3 * 2**64)


def test_the_limit_counts_what_is_left(videos: Path) -> None:
    assert len(open_dataset(f"{videos}:held=0.3", limit=2)) == 2


def test_shares_are_about_what_was_asked_and_nested(videos: Path) -> None:
    """A larger share holds out what a smaller one does, so that a set can grow without a leak."""
    refs = open_dataset(str(videos))
    small, large = ({ref.id for ref in refs if in_held_out(ref, share)} for share in (0.1, 0.5))
    assert small < large
    assert 0.35 < len(large) / len(refs) < 0.65


@pytest.mark.parametrize(
    "options", ["held=0.3,kept=0.3", "held=2", "held=x", "kept=0", "held=0.3,group=(", "held=0.3,group=a", "group=(a)"]
)
def test_wrong_shares_are_one_line(videos: Path, options: str) -> None:
    with pytest.raises(HrsegError, match=r"SHARE|share"):
        open_dataset(f"{videos}:{options}")


def test_an_empty_share_is_told(videos: Path) -> None:
    with pytest.raises(HrsegError, match="no object in that share"):
        open_dataset(f"{videos}:held=0.0001")
