"""The index of a dataset: every file is decoded once, broken files are reported, good objects are recorded.

``index.jsonl``: a first line with the settings and a fingerprint of all files, then one line per good object, with
paths relative to the dataset's folder. While the fingerprint matches, ``open_dataset`` reads instance ids from the
index instead of opening every mask. The index never changes which objects a dataset has.

``index.lines.npy``: the offset of each line, so that :class:`Index` opens millions of objects without reading a line.
``index.jsonl.part``: the records of an interrupted build; the next build resumes after them.
``.index.jsonl.hrseg-lock``: the lock, held during a build.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np

from hrseg_cli.data.pixels import parse_span, read_image, read_mask
from hrseg_cli.data.refs import Listing, Ref
from hrseg_cli.data.samples import expand, fingerprint, instance_ids, list_masks, relative, truth_of
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import LINE
from hrseg_cli.parsing import parse_json
from hrseg_cli.recipe import BinarizeRule
from hrseg_cli.writing import only_one, write_atomically, writing_atomically

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Summary:
    """The result of :func:`build_index`.

    images, objects: counts of good images and objects. rules: label rule -> number of objects.
    problems: one line each, with the file and the fix, in dataset order. empty: instance masks without an object.
    """

    path: Path
    images: int
    objects: int
    rules: dict[str, int]
    problems: list[str]
    empty: int = 0


# ---- building --------------------------------------------------------------------------------------------------------


def build_index(
    spec: str | Path | Listing,
    *,
    root: Path | None = None,
    instances: bool = False,
    binarize: BinarizeRule = "auto",
    out: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Decode all images and masks of a dataset and write its index.

    After an interruption at any moment, the next call resumes and writes the same bytes.

    spec, root, instances, binarize: as for ``open_dataset``; or what ``list_split`` returned.
    out: the file to write, for datasets in read-only folders; ``index.jsonl`` in the dataset otherwise.
    workers: threads (decoding releases the GIL); None: one per core.
    progress: called with (images done, total images).

    Raises HrsegError if the dataset cannot be listed, the index cannot be written or another process is building it.
    Broken files do not raise; they are returned as ``problems``.
    """
    if isinstance(spec, Listing):
        found = spec
    else:
        found = list_masks(str(spec), root=root, instances=instances, binarize=binarize)
    if any(ref.draw for ref in found.masks):
        raise HrsegError(f"{spec}: is drawn on demand, with no files to index; give a folder")
    head = {"version": 1, "instances": instances, "binarize": binarize, "name": found.name, **_state(found)}
    path = out or found.index_file
    part = path.with_name(f"{path.name}.part")
    groups = [list(group) for _, group in groupby(found.masks, key=lambda ref: ref.image)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_one(path, str(path)):
            done = _resume(part, head)
            with part.open("ab") as file, ThreadPoolExecutor(workers or os.cpu_count()) as pool:
                checked = pool.map(lambda group: check_image(group, partial(_record, found.folder)), groups[done:])
                for number, (good, bad) in enumerate(checked, done + 1):
                    lines = [_line(record) for record in good]
                    problems = [[relative(mask, found.folder), text] for mask, text in bad]
                    lines.append(_line({"done": number, "problems": problems}))
                    file.write(b"".join(lines))
                    file.flush()
                    if progress:
                        progress(number, len(groups))
            unread = {relative(ref.mask, found.folder) for ref in found.masks if ref.unread}
            return _finish(part, path, head, len(groups), unread)
    except OSError as error:
        raise HrsegError(f"{path}: cannot be written ({error.strerror}); choose another file with `out`") from None


def is_fresh(found: Listing) -> bool:
    """Whether the index matches these files and found no problem in them."""
    try:
        with found.index_file.open("rb") as file:
            head = parse_json(file.readline(LINE.bytes), LINE)
        return bool(head["version"] == 1 and not head["incomplete"] and head.items() >= _state(found).items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _state(found: Listing) -> dict[str, Any]:
    """State of the files and of the way they are read: the same files may be listed in several ways."""
    return {"fingerprint": fingerprint(found.folder, found.masks), "listing": _hash(found.masks)}


def _hash(masks: list[Ref]) -> str:
    digest = hashlib.sha256()
    for ref in masks:
        parts = [ref.id, ref.rule, ref.instance, ref.stuff, ref.initial.name if ref.initial else ""]
        line = "\t".join(map(str, [*parts, ref.span] if ref.span else parts))
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _resume(part: Path, head: dict[str, Any]) -> int:
    """Number of images in the file of an interrupted build; anything after the last complete one is cut off."""
    done = kept = 0
    if part.exists():
        with part.open("rb") as file:
            for position, record in _records(file):
                if position == 0 and record != head:
                    break
                if position == 0 or "done" in record:
                    done, kept = record.get("done", 0), file.tell()
    if kept:
        os.truncate(part, kept)
    else:
        part.write_bytes(_line(head))
    return done


def _records(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset, record) of each line up to the first incomplete one."""
    while True:
        position = file.tell()
        line = file.readline()
        try:
            record = parse_json(line, LINE)
        except ValueError:
            return
        if not line.endswith(b"\n") or not isinstance(record, dict):
            return
        yield position, record


def _finish(part: Path, path: Path, head: dict[str, Any], groups: int, unread: set[str]) -> Summary:
    """Turn the partial file of a complete build (all ``groups``) into the index. Good lines are copied unchanged.

    unread: the masks that had to be opened to find their objects.
    """
    rules: Counter[str] = Counter()
    seen: set[str] = set()
    problems: list[str] = []
    incomplete: set[str] = set()
    images = done = 0
    starts = array("q")  # pairs of (offset of a line, number of its image)
    with part.open("rb") as file:
        good_in_image = False
        for position, record in _records(file):
            if position == 0:
                continue
            if "done" in record:
                done = record["done"]
                problems += dict.fromkeys(text for _, text in record["problems"])
                incomplete |= {mask for mask, _ in record["problems"]}
                images += good_in_image
                good_in_image = False
                continue
            good_in_image = True
            starts.extend((position, images))
            rules[record["rule"]] += 1
            unread.discard(record["mask"])
            if record["id"] in seen:
                problems.append(f"{record['mask']}: duplicate object '{record['id']}'; rename one file")
                incomplete.add(record["mask"])
            seen.add(record["id"])
        if done != groups:
            raise HrsegError(f"{part}: changed while it was being written; delete it and rerun the command")
        table = np.array(starts, np.int64).reshape(-1, 2)
        with writing_atomically(path) as out, writing_atomically(_table_path(path)) as out_table:
            out.write(_line({**head, "incomplete": sorted(incomplete)}))
            for k in range(len(table)):
                file.seek(table[k, 0])
                table[k, 0] = out.tell()
                out.write(file.readline())
            np.save(out_table, np.append(table, [[out.tell(), images]], axis=0))
    part.unlink()
    return Summary(path, images, len(table), dict(rules), problems, len(unread - incomplete))


def check_image(
    masks: Sequence[Ref], keep: Callable[[Ref, np.ndarray, str], Kept]
) -> tuple[list[Kept], list[tuple[Path, str]]]:
    """What ``keep`` makes of each good object, its truth and the rule used, and (mask, problem) of the others, of one
    image. Decodes each file once."""
    kept: list[Kept] = []
    problems: list[tuple[Path, str]] = []
    read = cache(read_mask)
    try:
        size = read_image(masks[0].image, span=masks[0].span).shape[:2]
    except HrsegError as error:
        return [], [(ref.mask, str(error)) for ref in masks]
    for mask in masks:
        try:
            known = {mask.mask: instance_ids(mask.mask, read, mask.rule)} if mask.unread else {}
            objects = list(expand([mask], known))
        except HrsegError as error:
            problems.append((mask.mask, str(error)))
            continue
        for ref in objects:
            try:
                kept.append(keep(ref, *truth_of(ref, size, read)))
            except HrsegError as error:
                problems.append((mask.mask, str(error)))
    return kept, problems


def _record(folder: Path, ref: Ref, truth: np.ndarray, used: str) -> dict[str, Any]:
    record = {
        "id": ref.id,
        "image": relative(ref.image, folder),
        "mask": relative(ref.mask, folder),
        "instance": ref.instance,
        "height": truth.shape[0],
        "width": truth.shape[1],
        "area": int((truth == 1).sum()),
        "void": int((truth == -1).sum()),
        "rule": used,
    }
    rare = {
        "asked": ref.rule if ref.rule != used else None,
        "others": [relative(path, folder) for path in ref.others] or None,
        "initial": relative(ref.initial, folder) if ref.initial else None,
        "parent": ref.parent,
        "stuff": ref.stuff,
        "range": str(ref.span) if ref.span else None,
    }
    return record | {key: value for key, value in rare.items() if value is not None}


# ---- opening ---------------------------------------------------------------------------------------------------------


class Index(Sequence[Ref]):
    """The objects of an ``index.jsonl``, read on access.

    Opening takes as long for a million objects as for ten, and does not check the files: a changed file is noticed
    when it is loaded. Paths are relative to ``folder`` (default: the folder of the index), so a dataset can be moved.
    Pickled as a path, so it is cheap to send to worker processes.

    Raises HrsegError if the file is not an index.
    """

    def __init__(self, path: Path, *, folder: Path | None = None, name: str | None = None) -> None:
        self.path, self.folder, self._name = path, folder or path.parent, name
        try:
            with path.open("rb") as file:
                first = file.readline()
                self.head: dict[str, Any] = parse_json(first, LINE)
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self.head["version"] != 1:
                raise ValueError("another version")
            self._table = _read_table(path, self._text, len(first))
        except FileNotFoundError:
            raise HrsegError(f"{path}: no such index; create it with 'hrseg prepare-data'") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HrsegError(f"{path}: not an index ({error}); delete it and rerun 'hrseg prepare-data'") from None
        self.name: str = name or str(self.head.get("name") or self.folder.resolve().name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.folder, self._name)

    def __len__(self) -> int:
        return len(self._table) - 1

    @overload
    def __getitem__(self, index: int) -> Ref: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ref]: ...
    def __getitem__(self, index: int | slice) -> Ref | list[Ref]:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        record = self.record(index)
        return Ref(
            id=record["id"],
            dataset=self.name,
            image=self.folder / record["image"],
            mask=self.folder / record["mask"],
            rule=record.get("asked", record["rule"]),
            instance=record["instance"],
            others=tuple(self.folder / path for path in record.get("others", ())),
            initial=self.folder / record["initial"] if "initial" in record else None,
            parent=record.get("parent"),
            stuff=record.get("stuff"),
            span=parse_span(record["range"]) if "range" in record else None,
        )

    def record(self, index: int) -> dict[str, Any]:
        """The line of an object: its paths, ``height``, ``width``, ``area`` and ``void`` in pixels, ``rule``."""
        k = range(len(self))[index]
        try:
            record = parse_json(self._text[self._table[k, 0] : self._table[k + 1, 0]], LINE)
            texts = all(isinstance(record[key], str) for key in ("id", "image", "mask", "rule"))
            if not texts or not isinstance(record["instance"], int | None):
                raise ValueError
            return dict(record)
        except (ValueError, KeyError, TypeError):
            raise HrsegError(f"{self.path}, object {k}: not a valid index line; rerun 'hrseg prepare-data'") from None

    def image_starts(self) -> np.ndarray:
        """int64, (images + 1,): the first object of each image, and the number of objects."""
        images = self._table[:, 1]
        return np.append(0, np.flatnonzero(np.diff(images)) + 1) if len(self) else np.zeros(1, np.int64)


def _reopen(path: Path, folder: Path, name: str | None) -> Index:
    return Index(path, folder=folder, name=name)


def _table_path(path: Path) -> Path:
    return path.with_suffix(".lines.npy")


def _read_table(path: Path, text: mmap.mmap, first: int) -> np.ndarray:
    """int64, (objects + 1, 2): the offset of each line and the number of its image; the last row is the total bytes and
    images. Rebuilt if missing or if it does not match ``text``, whose first line takes ``first`` bytes."""
    size = len(text)
    try:
        table: np.ndarray = np.load(_table_path(path), mmap_mode="r")
        sound = table.dtype == np.int64 and table.shape[1:] == (2,) and len(table) > 0
        if sound and (table[0, 0], table[-1, 0]) == (first, size):
            return table
    except (OSError, ValueError, EOFError):
        pass
    starts = array("q")
    image, last = -1, None
    if text[size - 1] != 10:
        raise ValueError("an incomplete line")
    for line in re.finditer(rb'\n.*?"image": "((?:[^"\\]|\\.)*)', text):  # ten times as fast as reading JSON
        image += line[1] != last
        last = line[1]
        starts.extend((line.start() + 1, image))
    table = np.append(np.array(starts, np.int64).reshape(-1, 2), [[size, image + 1]], axis=0)
    file = io.BytesIO()
    np.save(file, table)
    with suppress(OSError):  # read-only folder: it will be rebuilt next time
        write_atomically(_table_path(path), file.getvalue())
    return table
