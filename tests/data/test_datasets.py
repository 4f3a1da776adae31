"""One way in: the same spec names the same objects for commands, recipes and Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_sets
from PIL import Image

from hrseg_cli.data.datasets import open_dataset, open_datasets, open_for_training
from hrseg_cli.errors import HrsegError, UnknownName


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every known dataset, and two folders of the user's own."""
    folder = tmp_path_factory.mktemp("data")
    tiny_sets.write_all(folder)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:15] = 255
    for kind in ("images", "masks"):
        for own in ("own", "other"):
            (folder / own / kind).mkdir(parents=True)
            for k in range(20):
                Image.fromarray(mask).save(folder / own / kind / f"{k}.png")
    box = {"id": 7, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]]}
    picture = {"id": 1, "file_name": "0.png", "height": 20, "width": 30}
    categories = [{"id": 1, "name": "box"}]
    (folder / "own" / "images" / "coco.json").write_text(
        json.dumps({"images": [picture], "annotations": [box], "categories": categories})
    )
    return folder


@pytest.mark.parametrize(
    ("spec", "datasets", "objects"),
    [
        ("davis", ["davis"], 2),
        ("hqseg44k", ["dis5k", "thinobject5k", "coift", "hrsod"], 8),
        ("sbd:split=train", ["sbd-train"], 4),
        ("own", ["own"], 20),
        ("mine={root}/own", ["mine"], 20),
        ("{root}/own/images/coco.json", ["coco"], 1),
        ("procedural:count=3,size=64", ["procedural"], 3),
    ],
)
def test_every_kind_of_spec_opens_alike_for_commands_and_training(
    spec: str, datasets: list[str], objects: int, root: Path
) -> None:
    spec = spec.format(root=root)
    refs = open_dataset(spec, root=root)
    assert list(dict.fromkeys(ref.dataset for ref in refs)) == datasets
    assert len(refs) == objects
    assert open_datasets([spec], root=root).refs == refs
    if "hqseg44k" not in spec and spec != "davis":  # without a split, training takes "train"
        assert list(open_for_training(spec, root=root)) == refs


def test_the_data_root_is_looked_up_in_one_way(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--root, else $HRSEG_DATA, else ./data: for known datasets and for folders."""
    monkeypatch.chdir(tmp_path)
    for spec in ("grabcut", "own"):
        monkeypatch.delenv("HRSEG_DATA", raising=False)
        with pytest.raises(HrsegError):
            open_dataset(spec)
        (tmp_path / "data").symlink_to(root)
        by_default = [ref.id for ref in open_dataset(spec)]
        (tmp_path / "data").unlink()
        monkeypatch.setenv("HRSEG_DATA", str(root))
        assert [ref.id for ref in open_dataset(spec)] == by_default
        with pytest.raises(HrsegError):
            open_dataset(spec, root=tmp_path)


def test_a_share_of_a_known_dataset_can_be_held_out(root: Path) -> None:
    """As of a folder; and a share is never called incomplete."""
    every = {ref.id for ref in open_dataset("sbd", root=root)}
    shares = [{ref.id for ref in open_dataset(f"sbd:{share}", root=root)} for share in ("held=0.2", "kept=0.2")]
    assert shares[0] | shares[1] == every
    assert len(shares[0]) == len(shares[1]) == 2
    assert open_datasets(["sbd"], root=root).incomplete == {"sbd": f"{len(every)} of 6671"}
    assert not open_datasets(["sbd:held=0.2"], root=root).incomplete


def test_names_that_results_cannot_have_are_refused(root: Path) -> None:
    with pytest.raises(HrsegError, match=r"'own' is used twice; .*NAME=FOLDER"):
        open_datasets(["own", f"own={root / 'other'}"], root=root)
    with pytest.raises(HrsegError, match="'noc' is reserved for the table"):
        open_datasets([f"noc={root / 'own'}"], root=root)
    with pytest.raises(UnknownName, match=r"split of sbd .vaal.*Did you mean 'val'"):
        open_dataset("sbd:split=vaal", root=root)
