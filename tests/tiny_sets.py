"""Tiny copies of known datasets, in exactly the layout that their manifests describe, with real pictures in them."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from reference import GOLDEN

from hrseg_cli.data.manifest import Manifest, Split, load_manifest, manifest_names
from hrseg_cli.recipe import data_folder

IMAGES = 2  # per split; SBD, VOC and COCO+LVIS hold two objects in each


def photograph(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (48, 64, 3) with a bright box, and the ids of its two halves, uint8 (48, 64)."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 60, (48, 64, 3)).astype(np.uint8)
    ids = np.zeros((48, 64), np.uint8)
    top, left = 8 + number % 5, 10 + number % 7
    ids[top : top + 20, left : left + 15], ids[top : top + 20, left + 15 : left + 30] = 1, 2
    image[ids > 0] += 150
    return image, ids


def write_split(root: Path, split: Split) -> int:
    """Write :data:`IMAGES` images with their masks; returns the number of objects."""
    here = root / split.folder
    if split.layout == "coco_lvis":
        return _coco_lvis(here / Path(split.images).parts[0])
    # Two splits may share a folder and are told apart by a list, so each gets stems of its own.
    stems = [f"{Path(split.listing).stem}_{k}" if split.listing else f"x.{k}" for k in range(IMAGES)]
    for number, stem in enumerate(stems):
        image, ids = photograph(number)
        if split.layout == "davis585":
            _save(here / stem / "00009.jpg", image)
            for name in ("object1_00009", "init_stm_object1_00009", "init_sp_object1_00009"):
                _save(here / stem / f"{name}.png", (ids > 0).astype(np.uint8) * 255)
            continue
        _save(here / _file(split.images, stem, ".jpg"), image)
        _mask(here / _file(split.masks, stem, ".png"), ids, split)
    if split.listing:
        (here / split.listing).parent.mkdir(parents=True, exist_ok=True)
        (here / split.listing).write_text("".join(f"{stem}\n" for stem in stems))
    return IMAGES * (2 if split.binarize == "instance" else 1)


def _file(pattern: str, stem: str, suffix: str) -> str:
    return (pattern[:-2] + suffix if pattern.endswith(".*") else pattern).replace("*", stem)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _mask(path: Path, ids: np.ndarray, split: Split) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if split.layout == "sbd":
        from scipy.io import savemat

        savemat(path, {"GTinst": {"Segmentation": ids, "Categories": np.ones((2, 1))}})
    elif split.layout == "pascalvoc":
        picture = Image.fromarray(ids)
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        picture.save(path)
    else:
        grey = np.where(ids > 0, 255, 0).astype(np.uint8)
        if split.ignore is not None:
            grey[:3] = split.ignore
        _save(path, grey)


def _coco_lvis(here: Path) -> int:
    """The recorded miniature, which a real pickle of RITM's tools made, under this split's name."""
    source = GOLDEN / "mini" / "LVIS" / "train"
    shutil.copytree(source, here, dirs_exist_ok=True)
    annotations: dict[str, Any] = pickle.loads((source / "hannotation.pickle").read_bytes())
    return sum(image["num_instance_masks"] for image in annotations.values())


def scaled_manifests(folder: Path, counts: dict[str, int]) -> None:
    """Copies of all manifests whose counts are those of the tiny copies; ``counts``: ``name/split`` -> objects."""
    folder.mkdir()
    for name in manifest_names():
        content = yaml.safe_load((data_folder("data_manifests") / f"{name}.yaml").read_text())
        for split, entry in content.get("splits", {}).items():
            entry["count_objects"] = counts[f"{name}/{split}"]
            entry["count_images"] = 1 if entry["layout"] == "coco_lvis" else IMAGES
            entry["about"] = False
        for split, parts in content.get("parts", {}).items():
            content["totals"][split] = sum(counts[part] for part in parts)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def write_all(root: Path) -> dict[str, int]:
    """A tiny copy of every dataset; ``name/split`` -> objects."""
    counts = {}
    for name in manifest_names():
        manifest: Manifest = load_manifest(name)
        for split, entry in manifest.splits.items():
            counts[f"{name}/{split}"] = write_split(root, entry)
    return counts
