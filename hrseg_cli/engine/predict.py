"""Clicks on a user's own images to mask files, one image after another. What is there already is not done again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli import __version__
from hrseg_cli.data.labels import read_object
from hrseg_cli.data.masks_out import ENDINGS, write_mask
from hrseg_cli.data.paths import checked
from hrseg_cli.data.pixels import Span, read_image
from hrseg_cli.data.samples import size_and_time
from hrseg_cli.engine.session import Session
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import BinarizeRule, Protocol
from hrseg_cli.writing import is_empty, only_one_in, write_atomically

RECORDS = "predict.jsonl"


@dataclass(frozen=True)
class Job:
    """One object of one image. object: its name, "" where the image has no other. initial: a mask to start from."""

    image: Path
    object: str
    clicks: tuple[Click, ...]
    initial: Path | None = None

    @property
    def key(self) -> tuple[str, str]:
        return os.path.abspath(self.image), self.object

    @property
    def wish(self) -> str:
        """What its files should be called: STEM, or STEM_OBJECT."""
        name = "".join(c if c.isalnum() or c in "-_.=+ " else "_" for c in self.object)
        return _cut(f"{self.image.stem}_{name}" if name else self.image.stem)


@dataclass(frozen=True)
class Asked:
    """What decides the files of an object, besides the object. provenance: of the model. formats: keys of ENDINGS.
    binarize: the label rule of masks to start from. span: black and white in images of more than 8 bits.
    """

    model: InteractiveModel
    provenance: dict[str, Any]
    protocol: Protocol
    formats: tuple[str, ...]
    tolerance: float
    binarize: BinarizeRule = "auto"
    span: Span | None = None

    def digest(self, job: Job) -> str:
        """The same when nothing has changed. Raises OSError for a file that is not there."""
        decides = {
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
        return sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


class Outcome(NamedTuple):
    """row: image, object, clicks, area (pixels), files, seconds (answering the clicks); None where ``error`` says why.

    kept: it was there already.
    """

    row: dict[str, Any] | None = None
    error: str = ""
    kept: bool = False


def predict(jobs: Sequence[Job], asked: Asked, out: Path) -> Iterator[Outcome]:
    """Segment every object and write its files to the folder ``out``, in order; jobs of one image stand together.

    ``predict.jsonl`` in the folder says which files belong to which object, and how they came about. Raises HrsegError
    for a folder of something else, or one that another process writes to; what is wrong with one image is only told.
    """
    with only_one_in(out, f"`out` {out}"):
        yield from _predict(jobs, asked, out)


def _predict(jobs: Sequence[Job], asked: Asked, out: Path) -> Iterator[Outcome]:
    records, replaced = _read_all(out)
    digests = [_digest(asked, job) for job in jobs]
    names = _names(jobs, records)
    done = {
        job.key: record
        for job, digest in zip(jobs, digests, strict=True)
        if (record := records.get(job.key)) and record["asked"] == digest and _all_there(out, record)
    }
    for job in jobs:  # before a file of theirs is replaced: a kill must not leave new files beside an old record
        if job.key in records and job.key not in done:
            records[job.key]["asked"] = ""
    _remove(out, replaced, records)
    again = any(job.key in records and job.key not in done for job in jobs)
    write_atomically(out / RECORDS, "".join(_line(record) for record in records.values()))
    current, image = "", np.empty(0)
    with (out / RECORDS).open("a", encoding="utf-8") as file:
        for job, digest, name in zip(jobs, digests, names, strict=True):
            if job.key in done:
                yield Outcome(_row(job, done[job.key], out), kept=True)
                continue
            try:
                if job.key[0] != current:
                    current, image = "", np.empty(0)  # gives the memory of the last one back first
                    current, image = job.key[0], read_image(job.image, span=asked.span)
                probability, seconds = segment(job, asked, image)
            except HrsegError as error:
                yield Outcome(error=str(error))
                continue
            threshold = asked.protocol.threshold
            files = write_mask(
                out, name, asked.formats, image, probability, threshold,
                source=job.image.name, category=job.object or "object", tolerance=asked.tolerance,
            )  # fmt: skip
            record = {
                "image": job.key[0],
                "object": job.object,
                "name": name,
                "clicks": [[c.row, c.col, int(c.positive)] for c in job.clicks],
                "area": int(np.count_nonzero(probability > threshold)),
                "files": files,
                "seconds": round(seconds, 4),
                "asked": digest,
            }
            del probability
            file.write(_line(record))
            file.flush()
            old = records.get(job.key, {}).get("files", [])
            records[job.key] = record
            if set(old) - set(files):
                os.fsync(file.fileno())
                _remove(out, old, records)
            yield Outcome(_row(job, record, out))
    if again:  # one line for each object, as if there had been no earlier ones
        write_atomically(out / RECORDS, "".join(_line(record) for record in records.values()))


def segment(job: Job, asked: Asked, image: np.ndarray) -> tuple[np.ndarray, float]:
    """Probability, float32 (H, W), after the job's clicks on its image, uint8 (H, W, 3), and the seconds they took.

    Raises HrsegError for a click outside the image or a mask of another size.
    """
    height, width = image.shape[:2]
    for click in job.clicks:
        if not click.lies_in(height, width):
            raise HrsegError(
                f"{job.image}: click {click.row:g},{click.col:g} lies outside the image ({height} rows, {width} "
                "columns); clicks are row,col"
            )
    initial = None
    if job.initial:
        initial = read_object(job.initial, (height, width), asked.binarize, job.image)
    session = Session(asked.model, image, asked.protocol, initial, undo=0)
    started = time.perf_counter()
    for click in job.clicks:
        session.click(click)
    return session.probability, time.perf_counter() - started


def _digest(asked: Asked, job: Job) -> str:
    try:
        return asked.digest(job)
    except OSError:
        return "unreadable"  # reading it will say why


def _cut(name: str) -> str:
    """As long as file systems take it, with an ending and a number."""
    return name.encode(errors="surrogateescape")[:180].decode(errors="ignore")


def _names(jobs: Sequence[Job], records: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """How the files of each job are called: as last time, else its wish, with the folder or a number where needed.

    No two objects share a file, whatever the formats and also where a file system does not tell capitals apart.
    """

    taken = {file for record in records.values() for file in _files(record["name"])}
    names = []
    for job in jobs:
        if job.key in records:
            names.append(str(records[job.key]["name"]))
            continue
        folder = Path(job.key[0]).parent.name
        others = (f"{job.wish}_{number}" for number in count(2))
        name = next(n for n in chain([job.wish, _cut(f"{folder}_{job.wish}")], others) if taken.isdisjoint(_files(n)))
        taken |= _files(name)
        names.append(name)
    return names


def read_records(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(image's path, object) -> its last record. A torn last line (an interrupted run) is dropped.

    Raises HrsegError for a line that is no record, or that names other files than its object's in ``out``.
    """
    return _read_all(out)[0]


def _read_all(out: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """:func:`read_records`, and the files that records before the last ones name."""
    path = out / RECORDS
    if not path.exists():
        if not is_empty(out):
            raise HrsegError(f"`out` {out}: not empty and not written by 'hrseg predict'; name another folder")
        return {}, []
    records: dict[tuple[str, str], dict[str, Any]] = {}
    replaced: list[str] = []
    owners: dict[str, tuple[str, str]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            key = str(record["image"]), str(record["object"])
            record = {**record, "name": record["name"], "files": record["files"], "asked": record["asked"]}
            _check_files(path, record)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise HrsegError(f"{path}, line {number}: not a record; delete the line, or the folder") from None
            continue
        if any(owners.setdefault(file, key) != key for file in _files(record["name"])):
            raise HrsegError(f"{path}, line {number}: names files of another object; delete the line, or the folder")
        replaced += records[key]["files"] if key in records else []
        records[key] = record
    return records, replaced


def _remove(out: Path, replaced: list[str], records: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The files that no record names any more. Only once the new records are durable."""
    for file in set(replaced).difference(*(record["files"] for record in records.values())):
        (out / file).unlink(missing_ok=True)


def _check_files(path: Path, record: dict[str, Any]) -> None:
    """What a record names is written and deleted. Raises ValueError or HrsegError unless it is its object's."""
    name = checked(record["name"], path)
    if "/" in name or not set(record["files"]) <= {f"{name}{ending}" for ending in ENDINGS.values()}:
        raise ValueError


def _files(name: str) -> set[str]:
    """All that an object of this name may be written to, on a file system that does not tell capitals apart."""
    return {f"{name}{ending}".lower() for ending in ENDINGS.values()}


def _all_there(out: Path, record: dict[str, Any]) -> bool:
    return all((out / file).is_file() for file in record["files"])


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _row(job: Job, record: dict[str, Any], out: Path) -> dict[str, Any]:
    """What is printed: paths as the user types them."""
    return {
        "image": str(job.image),
        "object": record["object"],
        "clicks": record["clicks"],
        "area": record["area"],
        "files": [str(out / file) for file in record["files"]],
        "seconds": record["seconds"],
    }
