"""High-resolution pictures with masks that are exact at the pixel: objects of photographs, pasted on other photographs.

    python recipes/paper/composites.py OUT --object DATASET [--object ...] --background DATASET [--background ...]
        [--held 90] [--kept 400] [--share 0.1] [--size 2048] [--seed 0] [--root FOLDER]

Writes OUT/images/KEY-NUMBER.jpg and OUT/masks/KEY-NUMBER.png. KEY is the file name of the object's photograph, or what
the dataset's ``group=`` finds in it, for sets in which several photographs show the same object. Of held-out keys there
are HELD pictures, on held-out backgrounds, of the others KEPT, so ``OUT:held=0.1,group=(.+)-\\d+$`` and
``OUT:kept=0.1,group=(.+)-\\d+$`` share no photograph. Rerun the same command, also with larger numbers, to resume.

Background and object are enlarged by one factor, after the object was shrunk if it was too large, so that one is as
sharp as the other. The picture is blended by the opacity whose half is the edge of the mask, so the two agree at every
pixel. The object comes from another dataset than the background, and touches no object that is annotated there.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from hrseg_cli.data.augment import paste
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.refs import Ref
from hrseg_cli.data.samples import load, split_options
from hrseg_cli.data.views import Images, Scene, load_scene
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Sample
from hrseg_cli.parsing import read_json
from hrseg_cli.recipe import Composite
from hrseg_cli.writing import only_one_in, sweep, write_atomically

VERSION = 1  # increase when the same arguments give different pixels
AREA = 0.02, 0.3  # of the picture
LEAST = 0.005  # of the picture, where the object is not enlarged enough for AREA, or is cut off
SMOOTH = 0.7  # blur of a mask before it is enlarged, in pixels of the photograph: otherwise it would have steps
INSIDE = 0.7  # threshold of that blur, a third of a pixel inside: edge pixels show the old background too
SOFT = 0.5  # blur of the pasted edge, in pixels of the photograph
GRAIN = 2.5  # noise over the whole picture, in grey levels: enlarging has smoothed that of the photographs
TRIES = 200  # backgrounds and places for an object


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--object", action="append", required=True, metavar="DATASET")
    parser.add_argument("--background", action="append", required=True, metavar="DATASET")
    parser.add_argument("--held", type=int, default=90, help="pictures of held-out photographs")
    parser.add_argument("--kept", type=int, default=400, help="pictures of the other photographs")
    parser.add_argument("--share", type=float, default=0.1, help="of the photographs that is held out")
    parser.add_argument("--size", type=int, default=2048, help="longer side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, help="folder of the datasets")
    options = parser.parse_args(arguments)
    settings = {key: getattr(options, key) for key in ("object", "background", "share", "size", "seed")}
    with only_one_in(options.out, str(options.out)):
        sweep(options.out / "images", options.out / "masks")
        note = options.out / "composites.json"
        if note.exists() and read_json(note) != {**settings, "version": VERSION}:
            raise HrsegError(f"{options.out}: contains composites made with other arguments; use another folder")
        write_atomically(note, json.dumps({**settings, "version": VERSION}) + "\n")
        for part, count in (("held", options.held), ("kept", options.kept)):
            write(options.out, part, count, options)


def write(out: Path, part: str, count: int, options: argparse.Namespace) -> None:
    """Write ``count`` composites of the photographs of a part, "held" or "kept"; existing ones are kept."""
    size, seed = options.size, options.seed

    def opened(spec: str) -> list[Ref]:
        return open_dataset(f"{spec}{',' if split_options(spec)[1] else ':'}{part}={options.share}", root=options.root)

    objects = [(key_of(ref, spec), ref) for spec in options.object for ref in opened(spec)]
    grounds = [Images(opened(spec)) for spec in options.background]
    stream = ("held", "kept").index(part)
    for number in range(count):
        turn, place = divmod(number, len(objects))
        order = np.random.default_rng((seed, stream, 0, turn)).permutation(len(objects))
        key, ref = objects[int(order[place])]
        image, mask = (out / kind / f"{key}-{number:05d}" for kind in ("images", "masks"))
        image, mask = image.with_name(f"{image.name}.jpg"), mask.with_name(f"{mask.name}.png")
        if image.exists() and mask.exists():
            continue
        others = [ground for ground in grounds if ground[0][0].dataset != ref.dataset]
        picture, solid = composite(ref, others, size, np.random.default_rng((seed, stream, 1, number)))
        jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        write_atomically(image, jpeg.tobytes())
        write_atomically(mask, cv2.imencode(".png", solid * np.uint8(255))[1].tobytes())
        print(f"{part} {number + 1}/{count} {image.name}", flush=True)


def key_of(ref: Ref, spec: str) -> str:
    """What decides whether a photograph is held out: its file name, or what the group of ``spec`` finds in it."""
    found = re.search(split_options(spec)[1].get("group", "(.+)"), ref.image.stem)
    return found.group(1) if found else ref.image.stem


def composite(
    ref: Ref, backgrounds: Sequence[Images], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8, (H, W, 3), RGB, whose longer side is ``size``, and the object in it, bool, (H, W).

    Raises HrsegError if no background has room for the object.
    """
    donor = load(ref)
    weights = np.sqrt([len(pool) for pool in backgrounds])  # a small set of large photographs counts, but not too much
    for _ in range(TRIES if backgrounds else 0):
        pool = backgrounds[rng.choice(len(backgrounds), p=weights / weights.sum())]
        scene = load_scene(pool[int(rng.integers(len(pool)))])
        picture, solid, covered = pasted(donor, scene, size, rng)
        if not covered and solid.mean() >= LEAST:
            grain = GRAIN * rng.standard_normal(picture.shape, np.float32)
            return np.rint(picture + grain).clip(0, 255).astype(np.uint8), solid
    raise HrsegError(f"{ref.image}: no background of another dataset has room for {ref.id}; add backgrounds")


def pasted(donor: Sample, scene: Scene, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
    """The enlarged scene with the donor's object somewhere on it, uint8, (H, W, 3); the object in it, bool, (H, W); and
    whether it covers annotated objects of the scene. size: H or W, the longer one, in pixels."""
    height, width = scene.image.shape[:2]
    factor = size / max(height, width)
    ground = resized(scene.image, factor)
    taken = cv2.resize((scene.truths != 0).any(0).view(np.uint8), ground.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    image, solid = around(donor)
    rows, cols = (solid.any(axis).sum() for axis in (1, 0))
    share = math.exp(rng.uniform(*np.log(AREA)))
    shrunk = min(1, math.sqrt(share * height * width / solid.sum()), height / rows, width / cols)
    soft = cv2.GaussianBlur(resized(solid.astype(np.float32), shrunk), (0, 0), SMOOTH)
    truth = (resized(soft, factor) > INSIDE).astype(np.int8)
    settings = Composite(area=(1, 1), enlarge=1, feather=(SOFT * factor, SOFT * factor))
    made, (rest, new) = paste(
        ground, taken[None].astype(np.int8), resized(resized(image, shrunk), factor), truth, rng, settings
    )
    return made, new == 1, int(rest.sum()) < int(taken.sum())


def around(donor: Sample, margin: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """The part of the photograph around the object, uint8, (H, W, 3), and the object in it, bool, (H, W)."""
    solid = donor.truth == 1
    left, top, width, height = cv2.boundingRect(solid.view(np.uint8))
    near = np.s_[max(0, top - margin) : top + height + margin, max(0, left - margin) : left + width + margin]
    return donor.image[near], solid[near]


def resized(array: np.ndarray, factor: float) -> np.ndarray:
    """An image (H, W, 3) or map (H, W), with both sides times ``factor``."""
    height, width = (max(1, round(side * factor)) for side in array.shape[:2])
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


if __name__ == "__main__":
    try:
        main()
    except HrsegError as error:
        sys.exit(f"composites.py: {error}")
