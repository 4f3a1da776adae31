"""Refine existing masks: a folder of mask files or a COCO file, into a folder. Up-to-date results are kept."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli import __version__, catalog
from hrseg_cli.data.coco_masks import CocoMasks, is_crowd
from hrseg_cli.data.mask_files import Item, MaskFiles, Size, Unit
from hrseg_cli.data.pixels import Span, read_image
from hrseg_cli.data.samples import size_and_time
from hrseg_cli.engine.refining import Refiner
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.limits import DATASET, LINE
from hrseg_cli.metrics.noc import interval
from hrseg_cli.metrics.precision import Instance, average_precision
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.parsing import parse_json, read_bytes
from hrseg_cli.writing import is_empty, make_folder, only_one_in, write_atomically

RECORDS = "refine.jsonl"
METRICS = ("iou", "biou", "mba")

MaskSet = MaskFiles | CocoMasks


@dataclass(frozen=True)
class RefineOptions:
    """Settings shared by all masks of a call; a change makes existing results outdated.

    model: the click model, with its provenance, for refiners that need it. threshold: more probable pixels are object.
    truths: ground truth, to score masks before and after. band: of Boundary IoU. span: see :func:`read_image`.
    clicks: image -> name of an object -> clicks on it, for refiners that take clicks.
    """

    refiner: Refiner
    model: InteractiveModel | None = None
    provenance: dict[str, Any] | None = None
    threshold: float = 0.5
    truths: MaskSet | None = None
    band: dict[str, float] | None = None
    span: Span | None = None
    clicks: dict[Path, dict[str, tuple[Click, ...]]] = field(default_factory=dict)

    def digest(self, masks: MaskSet, unit: Unit) -> str:
        """Hash of everything that decides a unit's result. Raises OSError for a missing image."""
        inputs = {
            "image": size_and_time(unit.image),
            "masks": unit.state,
            "settings": masks.settings,
            "refiner": self.refiner.settings.model_dump(exclude={"weights", "when"}),
            "model": self.provenance,
            "threshold": self.threshold,
            "truth": [self.truths.state(unit), self.band] if self.truths else None,
            "range": self.span,
            "clicks": self.clicks.get(unit.image),
            "hrseg": __version__,
        }
        return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class RefineResult(NamedTuple):
    """Of one unit: the number of its objects and how many pixels changed; None if the unit failed. errors: one line
    each. kept: an existing result was up to date."""

    row: dict[str, Any] | None
    errors: tuple[str, ...] = ()
    kept: bool = False


def refine(masks: MaskSet, options: RefineOptions, out: Path) -> Iterator[RefineResult]:
    """Refine every unit in order and write the results to the folder ``out``.

    ``refine.jsonl`` in the folder records what was done; masks that failed are tried again by the next call. Raises
    HrsegError for a folder that holds other files or that another process is writing to.
    """
    make_folder(out, f"`out` {out}")
    with only_one_in(out, f"`out` {out}"):
        recorded = _records(out)
        digests = {unit.name: _digest(masks, options, unit) for unit in masks.units}
        done = {
            unit.name: record
            for unit in masks.units
            if (record := recorded.get(unit.name))
            and record["asked"] == digests[unit.name]
            and masks.is_stored(out, record["stored"])
        }
        # First drop outdated records: a kill must not leave new files with an old record.
        _write(out, done.values())
        current, image = None, np.empty(0)
        with (out / RECORDS).open("a", encoding="utf-8") as file:
            for unit in masks.units:
                if unit.name in done:
                    record = done[unit.name]
                    yield RefineResult(_row(unit, record), tuple(record["errors"]), kept=True)
                    continue
                try:
                    if unit.image != current:
                        current, image = None, np.empty(0)  # free the previous image first
                        current, image = unit.image, read_image(unit.image, span=options.span)
                    record = _refine(masks, options, out, unit, image)
                except HrsegError as error:
                    yield RefineResult(None, (str(error),))
                    continue
                record = {"unit": unit.name, "asked": digests[unit.name], **record}
                done[unit.name] = record
                file.write(_line(record))
                file.flush()
                yield RefineResult(_row(unit, record), tuple(record["errors"]))
        ordered = {unit.name: done[unit.name] for unit in masks.units if unit.name in done}
        masks.finish(out, [record["stored"] for record in ordered.values()])
        _write(out, ordered.values())


def _refine(masks: MaskSet, options: RefineOptions, out: Path, unit: Unit, image: np.ndarray) -> dict[str, Any]:
    """The record of a unit whose masks have been refined and stored."""
    size = image.shape[0], image.shape[1]
    errors: list[str] = []
    objects: list[dict[str, Any]] = []

    def improved() -> Iterator[tuple[Item, np.ndarray]]:
        for item in masks.items(unit, size, errors):
            before = item.probability > options.threshold
            clicks = options.clicks.get(unit.image, {}).get(masks.name_of(unit, item.key), ())
            refined = options.refiner(image, item.probability, clicks, options.model)
            after = refined > options.threshold
            if before.any() and not after.any():
                what = f"object {item.key} of {unit.name}" if item.key else unit.name
                errors.append(f"{unit.image}: {what}: the refiner left no pixel; kept as it is")
                refined, after = item.probability, before
            about = {"key": item.key, "area": int(after.sum()), "changed": int((before != after).sum())}
            objects.append(about | _scores(options, unit, item, size, before, after))
            yield item, refined

    stored = masks.store(out, unit, size, improved(), options.threshold)
    return {"set": _set_of(unit.image), "size": size, "stored": stored, "objects": objects, "errors": errors}


def _scores(
    options: RefineOptions, unit: Unit, item: Item, size: Size, before: np.ndarray, after: np.ndarray
) -> dict[str, Any]:
    """Scores before and after; empty without ground truth."""
    truth = options.truths.truth(unit, item, size) if options.truths else None
    if truth is None:
        return {}
    scores: dict[str, Any] = {"before": {}, "after": {}}
    for name in METRICS:
        kind = catalog.resolve("metric", name)
        metric = kind(truth, **((options.band or {}) if getattr(kind, "takes_band", False) else {}))
        scores["before"][name], scores["after"][name] = metric(before), metric(after)
    return scores


def table(out: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Scores before and after, by set (a folder of images) and metric: means with 95 % bootstrap intervals.

    Each row: set, metric, n, before, after, change, and under "95%" the intervals of the last three.
    """
    by_set: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in _records(out).values():
        by_set[record["set"]] += [one for one in record["objects"] if "before" in one]
    rows = []
    for name, objects in by_set.items():
        for metric in METRICS if objects else ():
            before, after = (np.array([one[when][metric] for one in objects]) for when in ("before", "after"))
            columns = np.stack([before, after, after - before], 1)
            low, high = interval(columns, np.ones_like(columns), seed)
            row: dict[str, Any] = {"set": name, "metric": metric, "n": len(objects), "95%": {}}
            for k, key in enumerate(("before", "after", "change")):
                row[key] = round(float(columns[:, k].mean()), 4)
                row["95%"][key] = [round(float(low[k]), 4), round(float(high[k]), 4)]
            rows.append(row)
    return rows


def precision_rows(masks: MaskSet, truths: MaskSet | None, out: Path, band: dict[str, float]) -> list[dict[str, Any]]:
    """Average precision of COCO results with scores, before and after, on the images that were refined: by mask IoU,
    and by Boundary IoU. Nothing for other masks.

    Each row: set (name of the file), metric, n (objects of the ground truth), before, after, change.
    """
    if not (isinstance(masks, CocoMasks) and isinstance(truths, CocoMasks) and masks.has_scores):
        return []
    sizes = {record["unit"]: tuple(record["size"]) for record in _records(out).values() if record.get("size")}
    wanted = [_instance(*one) for one in truths.run_lengths(truths.entries, sizes)]
    before, after = (
        [_instance(*one) for one in masks.run_lengths(entries, sizes)] for entries in (masks.entries, masks.stored(out))
    )
    rows = []
    for prefix, its_band in (("", None), ("boundary_", band)):
        scores = [average_precision(wanted, found, sizes, its_band) for found in (before, after)]
        for name in scores[0]:
            old, new = (round(one[name], 4) if one[name] == one[name] else None for one in scores)
            change = None if old is None or new is None else round(new - old, 4)
            count = sum(not one.crowd for one in wanted)
            about = {"set": masks.path.stem, "metric": prefix + name, "n": count}
            rows.append({**about, "before": old, "after": new, "change": change})
    return rows


def _instance(image: str, entry: dict[str, Any], runs: dict[str, Any]) -> Instance:
    return Instance(image, str(entry.get("category_id")), runs, float(entry.get("score", 1.0)), is_crowd(entry))


def _set_of(image: Path) -> str:
    """Name of the folder of an image; for a folder "images", of the folder around it."""
    folder = image.absolute().parent
    return folder.parent.name if folder.name == "images" else folder.name


def _digest(masks: MaskSet, options: RefineOptions, unit: Unit) -> str:
    try:
        return options.digest(masks, unit)
    except OSError:
        return "unreadable"  # read_image reports the reason


def _records(out: Path) -> dict[str, dict[str, Any]]:
    """Unit -> record. An incomplete last line (of an interrupted run) is dropped. Raises HrsegError."""
    path = out / RECORDS
    if not path.exists():
        if not is_empty(out):
            raise HrsegError(f"`out` {out}: not empty and not written by 'hrseg refine'; choose another folder")
        return {}
    records = {}
    try:
        lines = read_bytes(path, DATASET.bytes).decode(errors="replace").split("\n")
    except ValueError as error:
        raise HrsegError(f"{path}: cannot be read ({error}); choose another folder") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = parse_json(line, LINE)
            keys = {"unit": str, "asked": str, "set": str, "stored": dict, "objects": list, "errors": list}
            if not all(isinstance(record[key], kind) for key, kind in keys.items()):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise HrsegError(f"{path}, line {number}: not a record; delete the line or the folder") from None
            continue
        records[record["unit"]] = record
    return records


def _write(out: Path, records: Iterable[dict[str, Any]]) -> None:
    write_atomically(out / RECORDS, "".join(map(_line, records)))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _row(unit: Unit, record: dict[str, Any]) -> dict[str, Any]:
    objects = record["objects"]
    return {
        "image": str(unit.image),
        "masks": unit.name,
        "objects": len(objects),
        "changed": sum(one["changed"] for one in objects),
    }
