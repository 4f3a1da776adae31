"""What a run folder does about an end that came in the middle of a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrseg_cli.runs import _cut_torn_line

MIB = 1 << 20


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"whole\n", b"whole\n"),
        (b"whole\ntorn", b"whole\n"),
        (b"torn", b""),
        (b"x" * (3 * MIB), b""),
        (b"whole\n" + b"x" * (2 * MIB + 5), b"whole\n"),
        (b"y" * (MIB - 1) + b"\n" + b"x" * MIB, b"y" * (MIB - 1) + b"\n"),
    ],
    ids=lambda text: f"{len(text)} bytes",
)
def test_a_torn_line_is_cut_however_long(before: bytes, after: bytes, tmp_path: Path) -> None:
    """Masks make lines longer than the pieces the file is read in."""
    path = tmp_path / "part.jsonl"
    path.write_bytes(before)
    _cut_torn_line(path)
    assert path.read_bytes() == after
