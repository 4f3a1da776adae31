"""Names from data as paths: whatever they hold, what is written stays below its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrseg_cli.data import paths
from hrseg_cli.data.paths import below, fault, inner
from hrseg_cli.errors import HrsegError

NAMES = st.lists(st.sampled_from(["..", ".", "", "a", "b#1", "link", "C:", "\0", "\ud800", "é"]), max_size=5).map(
    "/".join
)


@pytest.mark.parametrize("name", ["a.png", "s/a#1.png", "a:b.png", "...", "a..b/.c", "con", "größe 1?.png", "x" * 240])
def test_ordinary_names_are_taken(name: str, tmp_path: Path) -> None:
    assert below(tmp_path / "new", name, "list") == tmp_path / "new" / name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        (None, "is empty or not a string"),
        (3, "is empty or not a string"),
        ("..", "points outside"),
        ("../x", "points outside"),
        ("a/../../x", "points outside"),
        ("/etc/x", "points outside"),
        ("a//x", "points outside"),
        ("a/", "points outside"),
        ("./x", "points outside"),
        ("a\0b", "not allowed in file names"),
        ("a\ud800", "not allowed in file names"),
        ("a/" + "x" * 241, "more than 240 bytes"),
        ("é" * 121, "more than 240 bytes"),
    ],
)
def test_what_is_no_name_below_a_folder_is_refused_in_one_line(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(HrsegError) as caught:
        below(tmp_path, name, "list.csv")
    line = str(caught.value)
    assert line.startswith("list.csv: the name ")
    assert why in line
    assert "\n" not in line
    assert len(line) < 200


@pytest.mark.parametrize("name", ["a:b", "x/con.png", "a?", "a\\..\\b", "a. ", "LPT1", "a\tb"])
def test_what_windows_reads_in_another_way_is_refused_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault(name) == ""
    monkeypatch.setattr(paths, "WINDOWS", True)
    with pytest.raises(HrsegError, match="on Windows"):
        below(tmp_path, name, "list")
    assert fault("console/a.b") == ""


def test_a_link_inside_of_the_folder_may_not_lead_out(tmp_path: Path) -> None:
    folder, outside = tmp_path / "real", tmp_path / "outside"
    for place in (folder / "masks", outside):
        place.mkdir(parents=True)
    (folder / "out").symlink_to(outside)
    (folder / "loop").symlink_to("loop")
    (folder / "in").symlink_to(folder / "masks")
    (folder / "last.png").symlink_to(outside / "x")
    (tmp_path / "folder").symlink_to(folder)  # the folder itself may be one
    for name in ("out/x.png", "out/deep/x.png"):
        with pytest.raises(HrsegError, match="link that points outside"):
            below(tmp_path / "folder", name, "list")
    for name in ("in/x.png", "masks/x.png", "last.png", "loop/x.png"):
        assert below(tmp_path / "folder", name, "list") == tmp_path / "folder" / name


@given(NAMES)
def test_nothing_leads_out(name: str) -> None:
    """Any mixture of awkward parts: either a path inside or one line, and what ``inner`` makes of it is inside."""
    folder = Path("/somewhere/folder")
    try:
        path = below(folder, name, "list")
    except HrsegError:
        assert fault(name)
    else:
        assert Path(os.path.normpath(path)).is_relative_to(folder)
    safe = inner(name)
    assert not safe or fault(safe) in ("", "contains a character that is not allowed in file names")


def test_the_inner_part_of_a_path() -> None:
    assert inner("../../label/4/a.jpg") == inner("/label/4/a.jpg") == inner("C:/label/4/a.jpg") == "label/4/a.jpg"
    assert inner("images/./x/../a.jpg") == "images/a.jpg"
    assert inner("a/../../b") == "b"
    assert inner("..") == inner("/") == ""
