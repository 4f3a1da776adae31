"""The masks that a run has kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import LINE, PIXELS
from hrseg_cli.parsing import parse_json, reason, shown
from hrseg_cli.report.table import Evaluation


def mask_records(run: Evaluation) -> Iterator[dict[str, Any]]:
    """Lines of ``masks.jsonl``, one at a time, because those of a large dataset do not fit in memory."""
    names = ["masks.jsonl", *(["masks.part.jsonl"] if run.status != "done" else [])]
    paths = [folder / name for folder in run.shards or (run.folder,) for name in names]
    if not any(path.is_file() for path in paths):
        raise HrsegError(f"{run.folder}: has no masks.jsonl; rerun evaluate with `keep_masks`")
    for path in filter(Path.is_file, paths):
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE.bytes), b""), 1):
                try:
                    yield _mask_record(line)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    if run.status != "done" and not line.endswith(b"\n"):  # incomplete after an interrupt
                        return
                    raise HrsegError(
                        f"{path}, line {number}: not a mask record ({reason(error)}); rerun evaluate"
                    ) from None


def _mask_record(line: bytes) -> dict[str, Any]:
    """A line of ``masks.jsonl``. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
    record: dict[str, Any] = parse_json(line, LINE)
    height, width = record["size"]
    if not (isinstance(height, int) and isinstance(width, int) and 0 < height * width <= PIXELS and height > 0):
        raise ValueError(f"a size of {shown(record['size'])}")
    texts = [record["dataset"], record["id"], record["image"], record["truth"], *record["masks"].values()]
    optional = [text for text in (record.get("void"), record.get("initial")) if text is not None]
    if not all(isinstance(text, str) for text in [*texts, *optional]):
        raise ValueError("values that are not text")
    return record


def decode(record: dict[str, Any], counts: str | None) -> np.ndarray | None:
    """bool, (H, W), from COCO's compressed run lengths (column-major). Raises HrsegError."""
    from hrseg_cli.data.coco import from_runs

    if counts is None:
        return None
    height, width = record["size"]
    try:
        return from_runs({"size": (height, width), "counts": counts}, (height, width))
    except ValueError as error:
        raise HrsegError(f"masks of {record['dataset']}/{record['id']}: {error}; rerun evaluate") from None
