"""Segments a user's own images from given clicks and writes mask files. Up-to-date results are skipped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli import __version__
from hrseg_cli.data import exports
from hrseg_cli.data.coco import run_counts
from hrseg_cli.data.labels import read_object
from hrseg_cli.data.masks_out import ENDINGS, TOLERANCE, run_lengths, write_mask
from hrseg_cli.data.paths import below, checked
from hrseg_cli.data.pixels import Span, read_image
from hrseg_cli.data.samples import size_and_time
from hrseg_cli.engine.session import Session
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Prompt, as_numbers
from hrseg_cli.limits import DATASET, LINE, PIXELS
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.parsing import parse_json, read_bytes
from hrseg_cli.recipe import BinarizeRule, Protocol
from hrseg_cli.writing import is_empty, make_folder, only_one_in, sweep, write_atomically

RECORDS = "predict.jsonl"
FORMATS = (*ENDINGS, *exports.KINDS)  # files of one object each, and files about all images


@dataclass(frozen=True)
class Job:
    """One object of one image. object: its name, "" for an image's only object. clicks: with boxes, in their order.
    initial: an optional initial mask."""

    image: Path
    object: str
    clicks: tuple[Prompt, ...]
    initial: Path | None = None

    @property
    def key(self) -> tuple[str, str]:
        return os.path.abspath(self.image), self.object

    @property
    def stem(self) -> str:
        """Preferred name of its files, without ending: IMAGE or IMAGE_OBJECT."""
        name = "".join(c if c.isalnum() or c in "-_.=+ " else "_" for c in self.object)
        return _shortened(f"{self.image.stem}_{name}" if name else self.image.stem)


@dataclass(frozen=True)
class PredictOptions:
    """Settings shared by all objects of a call; a change makes existing results outdated.

    provenance: of the model. formats: of FORMATS. tolerance: polygon simplification, see :func:`write_mask`.
    binarize: label rule of initial masks. span: values shown as black and white in images of more than 8 bits.
    """

    model: InteractiveModel
    provenance: dict[str, Any]
    protocol: Protocol
    formats: tuple[str, ...]
    tolerance: float
    binarize: BinarizeRule = "auto"
    span: Span | None = None

    def digest(self, job: Job) -> str:
        """Hash of everything that decides a job's result. Raises OSError for a missing file."""
        inputs = {
            "clicks": job.clicks,
            "image": size_and_time(job.image),
            "initial": size_and_time(job.initial) if job.initial else None,
            "model": self.provenance,
            "protocol": self.protocol.model_dump(),
            "formats": self.formats,
            "tolerance": self.tolerance,
            "hrseg": __version__,
            **({"binarize": self.binarize} if job.initial and self.binarize != "auto" else {}),
            **({"range": self.span} if self.span else {}),
        }
        return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class PredictResult(NamedTuple):
    """row: image, object, clicks, area (pixels), files, seconds (segmentation only); None if ``error`` is set.

    kept: an existing result was up to date.
    """

    row: dict[str, Any] | None = None
    error: str = ""
    kept: bool = False


def predict(jobs: Sequence[Job], options: PredictOptions, out: Path) -> Iterator[PredictResult]:
    """Segment every object in order and write its files to the folder ``out``. Jobs of one image must be adjacent.

    ``predict.jsonl`` in the folder records each object's files and clicks. Formats about all images are written at the
    end, about every object of the folder that was made with that format. Raises HrsegError for a folder that holds
    other files or that another process is writing to. Errors in single images are reported in their results.
    """
    make_folder(out, f"`out` {out}")
    with only_one_in(out, f"`out` {out}"):
        yield from _predict(jobs, options, out)


def _predict(jobs: Sequence[Job], options: PredictOptions, out: Path) -> Iterator[PredictResult]:
    records, replaced = _read_all(out)
    before = set(_exported(out, records))
    own = [kind for kind in options.formats if kind in ENDINGS]
    shared = [kind for kind in options.formats if kind not in ENDINGS]
    digests = [_digest(options, job) for job in jobs]
    names = _names(jobs, records)
    done = {
        job.key: record
        for job, digest in zip(jobs, digests, strict=True)
        if (record := records.get(job.key)) and record["asked"] == digest and _all_exist(out, record)
    }
    for job in jobs:  # invalidate first: a kill must not leave new files with an old, seemingly valid record
        if job.key in records and job.key not in done:
            records[job.key]["asked"] = ""
    _remove(out, replaced, records)
    about = _files_about(out, shared, records, jobs)  # refuses what cannot be written before any click
    for path in {path for job in jobs if job.key not in done for path in about[job.key[0]]}:
        (out / path).unlink(missing_ok=True)
    repeated = any(job.key in records and job.key not in done for job in jobs)
    write_atomically(out / RECORDS, "".join(_line(record) for record in records.values()))
    current, image = "", np.empty(0)
    with (out / RECORDS).open("a", encoding="utf-8") as file:
        for job, digest, name in zip(jobs, digests, names, strict=True):
            if job.key in done:
                yield PredictResult(_row(job, done[job.key], out), kept=True)
                continue
            try:
                if job.key[0] != current:
                    current, image = "", np.empty(0)  # free the previous image first
                    current, image = job.key[0], read_image(job.image, span=options.span)
                probability, seconds = segment(job, options, image)
            except HrsegError as error:
                yield PredictResult(error=str(error))
                continue
            threshold = options.protocol.threshold
            files = write_mask(
                out, name, own, image, probability, threshold,
                source=job.image.name, category=exports.category_of(job.object), tolerance=options.tolerance,
            )  # fmt: skip
            record = {
                "image": job.key[0],
                "object": job.object,
                "name": name,
                "clicks": [as_numbers(one) for one in job.clicks],
                "area": int(np.count_nonzero(probability > threshold)),
                "files": files,
                "seconds": round(seconds, 4),
                "asked": digest,
            }
            if shared:
                runs = run_lengths(probability > threshold)
                record["export"] = {"formats": shared, "tolerance": options.tolerance, **runs}
            del probability
            file.write(_line(record))
            file.flush()
            old = records.get(job.key, {}).get("files", [])
            records[job.key] = record
            if set(old) - set(files):
                os.fsync(file.fileno())
                _remove(out, old, records)
            yield PredictResult(_row(job, record, out))
    if repeated:  # drop the outdated records: one line per object
        write_atomically(out / RECORDS, "".join(_line(record) for record in records.values()))
    made = _exported(out, records)
    places = {path: below(out, path, RECORDS) for path in made}
    sweep(*{place.parent for place in places.values()})
    for path, text in made.items():
        if not places[path].is_file():  # otherwise it is up to date, and somebody may have corrected it
            write_atomically(places[path], text(), durable=False)
    for path in before - made.keys():
        below(out, path, RECORDS).unlink(missing_ok=True)


def _exported(out: Path, records: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Callable[[], str]]:
    """The files about all images -> a function that makes the text of each."""
    made: dict[str, Callable[[], str]] = {}
    for kind in exports.KINDS:
        found: dict[str, list[dict[str, Any]]] = {}
        for record in _made_with(kind, records):
            found.setdefault(record["image"], []).append(record)
        names = exports.names_below([Path(image) for image in found])
        pictures = [
            exports.Exported(name, Path(image), _size(its[-1]), tuple(map(_shape, its)))
            for name, (image, its) in zip(names, found.items(), strict=True)
        ]
        if pictures:
            made |= exports.files([kind], pictures, folder=out)
    return made


def _made_with(kind: str, records: dict[tuple[str, str], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from (record for record in records.values() if kind in record.get("export", {}).get("formats", ()))


def _size(record: dict[str, Any]) -> tuple[int, int]:
    height, width = record["export"]["size"]
    return height, width


def _shape(record: dict[str, Any]) -> exports.Shape:
    its = record["export"]
    return exports.Shape(exports.category_of(record["object"]), its["counts"], its["tolerance"])


def _files_about(
    out: Path, kinds: Sequence[str], records: dict[tuple[str, str], dict[str, Any]], jobs: Sequence[Job]
) -> dict[str, list[str]]:
    """Image -> the files about it and others. Raises HrsegError for a name that cannot be written."""
    found: dict[str, list[str]] = {job.key[0]: [] for job in jobs}
    for kind in kinds:
        images = list(dict.fromkeys([*(record["image"] for record in _made_with(kind, records)), *found]))
        names = exports.names_below([Path(image) for image in images])
        exports.paths_of(kind, names)
        for image, name in zip(images, names, strict=True):
            paths = exports.files_about(kind, [name])
            for path in paths:
                below(out, path, image)
            found.setdefault(image, []).extend(paths)
    return found


def segment(job: Job, options: PredictOptions, image: np.ndarray) -> tuple[np.ndarray, float]:
    """Probability, float32 (H, W), after the job's clicks on its image, uint8 (H, W, 3), and the seconds it took.

    Raises HrsegError for a click outside the image or an initial mask of another size.
    """
    height, width = image.shape[:2]
    for click in job.clicks:
        if isinstance(click, Box):
            if not click.inside(height, width):
                raise HrsegError(
                    f"{job.image}: box {','.join(map(str, as_numbers(click)))} lies outside the image ({height} rows, "
                    f"{width} columns); boxes are top,left,bottom,right"
                )
        elif not click.lies_in(height, width):
            raise HrsegError(
                f"{job.image}: click {click.row:g},{click.col:g} lies outside the image ({height} rows, {width} "
                "columns); clicks are row,col"
            )
    initial = None
    if job.initial:
        initial = read_object(job.initial, (height, width), options.binarize, job.image)
    session = Session(options.model, image, options.protocol, initial, undo=0)
    started = time.perf_counter()
    for click in job.clicks:
        session.prompt(click)
    session.finish()
    return session.probability, time.perf_counter() - started


def _digest(options: PredictOptions, job: Job) -> str:
    try:
        return options.digest(job)
    except OSError:
        return "unreadable"  # read_image reports the reason


def _shortened(name: str) -> str:
    """A name short enough for file systems, with room for a number and an ending."""
    return name.encode(errors="surrogateescape")[:180].decode(errors="ignore")


def _names(jobs: Sequence[Job], records: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """The name of each job's files: the recorded one, otherwise its stem, with the folder or a number if needed.

    No two objects share a file, whatever the formats, even on a case-insensitive file system.
    """
    taken = {file for record in records.values() for file in _files(record["name"])}
    names = []
    for job in jobs:
        if job.key in records:
            names.append(str(records[job.key]["name"]))
            continue
        folder = Path(job.key[0]).parent.name
        others = (f"{job.stem}_{number}" for number in count(2))
        preferred = [job.stem, _shortened(f"{folder}_{job.stem}")]
        name = next(n for n in chain(preferred, others) if taken.isdisjoint(_files(n)))
        taken |= _files(name)
        names.append(name)
    return names


def read_records(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(image path, object) -> last record. An incomplete last line (of an interrupted run) is dropped.

    Raises HrsegError for a line that is not a record or that names files of another object.
    """
    return _read_all(out)[0]


def _read_all(out: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """:func:`read_records`, and the files named by replaced records."""
    path = out / RECORDS
    if not path.exists():
        if not is_empty(out):
            raise HrsegError(f"`out` {out}: not empty and not written by 'hrseg predict'; choose another folder")
        return {}, []
    records: dict[tuple[str, str], dict[str, Any]] = {}
    replaced: list[str] = []
    owners: dict[str, tuple[str, str]] = {}
    try:
        lines = read_bytes(path, DATASET.bytes).decode(errors="replace").split("\n")
    except ValueError as error:
        raise HrsegError(f"{path}: cannot be read ({error}); choose another folder") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = parse_json(line, LINE)
            key = str(record["image"]), str(record["object"])
            for name in ("name", "files", "asked", "clicks", "area", "seconds"):
                record[name]
            if not isinstance(record["name"], str) or not isinstance(record["files"], list):
                raise ValueError
            _check_export(record.get("export"))
            _check_files(path, record)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise HrsegError(f"{path}, line {number}: not a record; delete the line or the folder") from None
            continue
        if any(owners.setdefault(file, key) != key for file in _files(record["name"])):
            raise HrsegError(f"{path}, line {number}: names files of another object; delete the line or the folder")
        replaced += records[key]["files"] if key in records else []
        records[key] = record
    return records, replaced


def _remove(out: Path, replaced: list[str], records: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Delete the replaced files that no record names any more. Call it only once the new records are on disk."""
    for file in set(replaced).difference(*(record["files"] for record in records.values())):
        (out / file).unlink(missing_ok=True)


def _check_files(path: Path, record: dict[str, Any]) -> None:
    """Files named by a record get overwritten and deleted. Raises ValueError or HrsegError unless they are its own."""
    name = checked(record["name"], path)
    if "/" in name or not set(record["files"]) <= {f"{name}{ending}" for ending in ENDINGS.values()}:
        raise ValueError


def _check_export(export: Any) -> None:
    """Raises ValueError, KeyError or TypeError unless it is what a record says for files about all images."""
    if export is None:
        return
    height, width = export["size"]
    if not isinstance(export["counts"], str):
        raise TypeError
    run_counts(export, (height, width))
    if not (min(height, width) > 0 and height * width <= PIXELS and 0 <= export["tolerance"] <= TOLERANCE):
        raise ValueError
    if not {*export["formats"]} <= {*exports.KINDS}:
        raise ValueError


def _files(name: str) -> set[str]:
    """All files that an object of this name may be written to, in lower case."""
    return {f"{name}{ending}".lower() for ending in ENDINGS.values()}


def _all_exist(out: Path, record: dict[str, Any]) -> bool:
    return all((out / file).is_file() for file in record["files"])


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _row(job: Job, record: dict[str, Any], out: Path) -> dict[str, Any]:
    """The row to print, with paths as the user typed them."""
    return {
        "image": str(job.image),
        "object": record["object"],
        "clicks": record["clicks"],
        "area": record["area"],
        "files": [str(out / file) for file in record["files"]],
        "seconds": record["seconds"],
    }
