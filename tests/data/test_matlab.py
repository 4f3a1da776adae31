"""SBD's MATLAB files: compared with scipy's reader, which crashes on some damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from hrseg_cli.data.packed import read_mat
from hrseg_cli.errors import HrsegError

IDS = np.random.default_rng(0).integers(0, 5, (7, 11))


def content(ids: np.ndarray) -> dict[str, Any]:
    """With other variables and fields around, of other kinds."""
    boundaries = np.empty((2, 1), object)
    boundaries[:] = [[np.eye(3)], [np.eye(3) > 0]]
    return {
        "GTcls": {"Segmentation": ids * 0},
        "note": "text",
        "GTinst": {"Boundaries": boundaries, "Segmentation": ids, "Categories": np.ones((2, 1))},
    }


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "i8"])
def test_it_reads_what_scipy_reads(tmp_path: Path, kind: str, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    savemat(path, content(IDS.astype(kind)), do_compression=compressed)
    wanted = loadmat(path)["GTinst"]["Segmentation"][0, 0]
    found = read_mat(path)
    assert found.dtype == np.int32
    assert np.array_equal(found, wanted)
    assert np.array_equal(found, IDS)


def test_damage_is_one_line(tmp_path: Path) -> None:
    """Bytes changed, removed and repeated at random: an answer or an error."""
    path, random = tmp_path / "a.mat", np.random.default_rng(1)
    savemat(path, content(IDS.astype("u1")))
    whole = path.read_bytes()
    shapes, errors = [], []
    for _ in range(400):
        blob = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(len(blob)))
            blob[place] = int(random.integers(256))
        if random.random() < 0.3:
            start, stop = sorted(random.integers(0, len(blob), 2).tolist())
            blob[start:stop] = b"" if random.random() < 0.5 else blob[start:stop] * 2
        path.write_bytes(blob)
        try:
            shapes.append(read_mat(path).shape)
        except HrsegError as error:
            errors.append(str(error))
    assert IDS.shape in shapes
    assert len(errors) > 50
    assert all(error.startswith(str(path)) and len(error.splitlines()) == 1 for error in errors)
