"""Read every file of a dataset once: what is broken is named, what is good is written down.

``index.jsonl``: a first line with the settings and a fingerprint of all files, then one line per good object. While the
fingerprint holds, ``open_dataset`` takes the ids of index masks from it instead of opening every mask. It never changes
which objects a dataset has.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from hrseg_cli.data.samples import (
    INDEX,
    Ref,
    expand,
    fingerprint,
    instance_ids,
    list_masks,
    read_image,
    read_mask,
    relative,
    truth_of,
)
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule
from hrseg_cli.runs import write_atomically


@dataclass(frozen=True)
class Summary:
    """What :func:`build_index` found.

    images, objects: counts of the good ones. rules: label rule -> objects read by it.
    problems: one line each, with the file and the fix, in dataset order.
    """

    path: Path
    images: int
    objects: int
    rules: dict[str, int]
    problems: list[str]


def build_index(
    spec: str | Path,
    *,
    root: Path | None = None,
    instances: bool = False,
    binarize: BinarizeRule = "auto",
    out: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Decode all images and masks of a dataset and write its index.

    spec, root, instances, binarize: as for ``open_dataset``.
    out: the file to write, for datasets in folders that cannot be written; ``index.jsonl`` in the dataset otherwise.
    workers: threads (decoding runs outside Python's lock); None: one per core.
    progress: called with (images done, images in all).

    Raises HrsegError where the dataset cannot be listed or the index not be written; broken files are not raised but
    returned as ``problems``.
    """
    folder, masks = list_masks(str(spec), root=root, instances=instances, binarize=binarize)
    if any(ref.draw for ref in masks):
        raise HrsegError(f"{spec}: drawn on demand, so there is nothing to index; give a folder")
    print_of_files = fingerprint(folder, masks)
    groups = [list(group) for _, group in groupby(masks, key=lambda ref: ref.image)]
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    incomplete: set[str] = set()
    seen: set[str] = set()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for done, (good, bad) in enumerate(pool.map(lambda group: _check_image(folder, group), groups), 1):
            for record in good:
                if record["id"] in seen:
                    problems.append(f"{record['mask']}: object '{record['id']}' is there twice; rename one file")
                seen.add(record["id"])
            records += good
            problems += dict.fromkeys(problem for _, problem in bad)
            incomplete |= {relative(mask, folder) for mask, _ in bad}
            if progress:
                progress(done, len(groups))
    head = {
        "version": 1,
        "fingerprint": print_of_files,
        "instances": instances,
        "binarize": binarize,
        "incomplete": sorted(incomplete),
    }
    path = out or folder / INDEX
    try:
        write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [head, *records]))
    except OSError as error:
        raise HrsegError(f"{path}: cannot be written ({error.strerror}); name another file with --out") from None
    images = len({record["image"] for record in records})
    return Summary(path, images, len(records), dict(Counter(record["rule"] for record in records)), problems)


def _check_image(folder: Path, masks: list[Ref]) -> tuple[list[dict[str, Any]], list[tuple[Path, str]]]:
    """(records of good objects, (mask, problem) of the others) of the masks of one image; each file decoded once."""
    records: list[dict[str, Any]] = []
    problems: list[tuple[Path, str]] = []
    read = cache(read_mask)
    try:
        size = read_image(masks[0].image).shape[:2]
    except HrsegError as error:
        return [], [(ref.mask, str(error)) for ref in masks]
    for mask in masks:
        try:
            known = {mask.mask: instance_ids(mask.mask, read)} if mask.rule == "instance" else {}
            objects = list(expand([mask], known))
        except HrsegError as error:
            problems.append((mask.mask, str(error)))
            continue
        for ref in objects:
            try:
                truth, used = truth_of(ref, size, read)
            except HrsegError as error:
                problems.append((mask.mask, str(error)))
                continue
            records.append(
                {
                    "id": ref.id,
                    "image": relative(ref.image, folder),
                    "mask": relative(ref.mask, folder),
                    "instance": ref.instance,
                    "height": size[0],
                    "width": size[1],
                    "area": int((truth == 1).sum()),
                    "void": int((truth == -1).sum()),
                    "rule": used,
                }
            )
    return records, problems
