"""The files about all images of a folder: traces.jsonl, coco.json and pairs.csv.

They repeat what the records say. Every change writes them again, so each image keeps its part as text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import NamedTuple

from hrseg_cli.annotate.records import Picture, category_of
from hrseg_cli.interaction import Trace


class Line(NamedTuple):
    """An image's part of the files. annotations: the category of each object, and the end of its JSON in
    COCO's file."""

    traces: str
    size: tuple[int, int]
    annotations: list[tuple[str, str]]

    @classmethod
    def of(cls, stem: str, picture: Picture, dataset: str) -> Line:
        there = [one for one in picture.objects if one.file]
        traces = ""
        for one in there:
            if clicks := one.clicks:
                trace = Trace(
                    id=stem if len(there) == 1 else one.key,
                    dataset=dataset,
                    clicks=tuple(click.prompt for click in clicks),
                    scores={},
                    seconds=tuple(click.seconds for click in clicks),
                    until={},
                    size=picture.size,
                    area=one.area,
                    notes=one.notes(),
                )
                traces += trace.to_json() + "\n"
        annotations = []
        for one in there:
            if one.counts:
                shape = {"size": list(picture.size), "counts": one.counts}
                more = {"segmentation": shape, "area": one.area, "bbox": one.bbox, "iscrowd": 0}
                annotations.append((category_of(one.name), json.dumps(more)[1:]))
        return cls(traces, picture.size, annotations)


Part = tuple[Line, int, list[int], str]


def coco(titles: Sequence[str], lines: Sequence[Line], labels: Sequence[str], parts: dict[int, Part]) -> str:
    """COCO's file. labels: categories with the first ids, used or not; other names follow in the order of their first
    use. Annotations are numbered each time: the same annotations give the same file, restarts or not. parts: the text
    of each image with its numbers, kept from call to call; a folder may have thousands of objects."""
    known = {label: number for number, label in enumerate(labels, 1)}
    images, annotations, first = [], [], 1
    for number, (title, line) in enumerate(zip(titles, lines, strict=True), 1):
        if not line.annotations:
            continue
        height, width = line.size
        images.append({"id": number, "file_name": title, "height": height, "width": width})
        categories = [known.setdefault(name, len(known) + 1) for name, _ in line.annotations]
        part = parts.get(number)
        if part is None or part[0] is not line or part[1:3] != (first, categories):
            ends = zip(categories, line.annotations, strict=True)
            text = ", ".join(
                f'{{"id": {which}, "image_id": {number}, "category_id": {category}, {end}'
                for which, (category, (_, end)) in enumerate(ends, first)
            )
            part = parts[number] = line, first, categories, text
        annotations.append(part[3])
        first += len(categories)
    named = json.dumps([{"id": number, "name": name} for name, number in known.items()], ensure_ascii=False)
    shown = json.dumps(images, ensure_ascii=False)
    return f'{{"images": {shown}, "annotations": [{", ".join(annotations)}], "categories": {named}}}\n'


def pairs(titles: Sequence[str], pictures: Sequence[Picture], given: Sequence[dict[str, str]]) -> str:
    """pairs.csv with the masks of all images. given: the rows of an existing table, whose other columns and rows of
    other images are kept."""
    known = {(row["image"], row["mask"]): row for row in given}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for title, picture in zip(titles, pictures, strict=True):
        for one in picture.objects:
            key = title, f"masks/{one.file}"
            if one.file:
                kind = {"kind": "instance"} if one.value > 0 else {}
                found[key] = known.get(key, {"image": key[0], "mask": key[1], **kind})
    rows = [*found.values(), *(row for row in given if row["image"] not in set(titles))]
    text = io.StringIO()
    columns = dict.fromkeys(["image", "mask", *(column for row in rows for column in row)])
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
