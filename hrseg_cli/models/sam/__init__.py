"""Segment Anything models: SAM, SAM-HQ and SAM 2 through Hugging Face transformers, and pairs of ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.sam.network import CHOICES, SegmentAnything


def open_sam(spec: str) -> tuple[SegmentAnything, dict[str, Any]]:
    """A Segment Anything model and its provenance (name, options, file, sha256).

    spec: what follows ``sam:`` in a model's name: a folder in the format of Hugging Face transformers, a name on the
        Hugging Face hub such as facebook/sam-vit-base (with ``@REVISION`` if wanted), or ``ENCODER.onnx,DECODER.onnx``;
        then possibly ``,choose=previous``, see :class:`~hrseg_cli.models.sam.network.SegmentAnything`.
    Raises HrsegError or UnknownName.
    """
    files = spec.split(",")
    choose = "iou"
    if not Path(spec).is_dir() and files[-1].startswith("choose="):  # a folder's name may contain anything
        choose = files.pop().removeprefix("choose=")
        if choose not in CHOICES:
            raise UnknownName("choice of a mask", choose, CHOICES)
    if all(file.endswith(".onnx") for file in files):
        from hrseg_cli.models.sam.pairs import open_pair

        if len(files) != 2:
            raise HrsegError(f"`model` sam:{spec}: give two ONNX files, sam:ENCODER.onnx,DECODER.onnx")
        return open_pair(Path(files[0]), Path(files[1]), choose)
    from hrseg_cli.models.sam.hugging import open_folder, snapshot

    place = ",".join(files)
    folder = Path(place).expanduser()
    return open_folder(folder if place and folder.is_dir() else snapshot(place), choose, place)
