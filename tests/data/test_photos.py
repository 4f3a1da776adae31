"""Finding the user's own images: what a word stands for, and what is said about files that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from hrseg_cli.data import photos
from hrseg_cli.data.photos import find_images


def test_a_link_back_does_not_repeat_the_images(tmp_path: Path) -> None:
    """The pattern found one picture 41 times, and its clicks were ambiguous."""
    (tmp_path / "day").mkdir()
    for name in ("a.png", "x.png"):
        (tmp_path / "day" / name).touch()
    (tmp_path / "day" / "back").symlink_to("..")
    (tmp_path / "day" / "same.png").symlink_to("x.png")  # another name is another image
    found = find_images([f"{tmp_path}/**/*.png"])
    assert [path.name for path in found] == ["a.png", "same.png", "x.png"]
    assert {path.parent for path in found} == {tmp_path / "day"}


def test_pictures_in_formats_that_cannot_be_read_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = [suffix for suffix in photos.SUFFIXES if suffix not in (".heic", ".heif")]
    monkeypatch.setattr(photos, "SUFFIXES", without)  # as without the extra
    for name in ("a.jpg", "b.AVIF", "IMG_1.HEIC", "IMG_2.heic", ".c.heic", "notes.txt"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in find_images([str(tmp_path)])] == ["a.jpg", "b.AVIF"]
    assert (
        "skipped 2 pictures in formats that hrseg cannot read, such as IMG_1.HEIC; run pip install 'hrseg[heif]'"
        in caplog.text
    )
    for number in (1, 2):
        next(tmp_path.glob(f"IMG_{number}.*")).rename(tmp_path / f"IMG_{number}.cr2")
    caplog.clear()
    assert len(find_images([str(tmp_path)])) == 2
    assert "such as IMG_1.cr2; convert them to JPEG or PNG" in caplog.text
