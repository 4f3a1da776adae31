"""Verify a submission: a run that kept every mask (``evaluate --submission``). Neither model nor dataset is needed.

Scores are recomputed from the masks and the truth, each click is repeated from the mask before it, and the numbers of
the run from the scores. Images that are where the run found them are compared with their hashes.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from hrseg_cli import catalog
from hrseg_cli.clicks.annotator import next_prompt
from hrseg_cli.data.pixels import parse_span, read_image
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Trace
from hrseg_cli.recipe import Protocol
from hrseg_cli.report.masks import decode, mask_records
from hrseg_cli.report.table import Evaluation


def verify(run: Evaluation, complain: Callable[[str], None]) -> dict[str, Any]:
    """How much of a run was checked, and how many "problems" there are, each told to ``complain`` in a line.

    run: read by :func:`~hrseg_cli.report.table.read_evaluations`, which compares its numbers with its traces. Raises
    HrsegError for a run that is no submission.
    """
    if not run.settings.get("submission"):
        raise HrsegError(f"{run.folder}: does not keep every mask; rerun evaluate with `submission`")
    traces = {(trace.dataset, trace.id): trace for trace in run.traces}
    counts = {"objects": 0, "scores": 0, "clicks": 0, "initial_masks": 0, "images": 0, "problems": 0}
    for record in mask_records(run):
        key = str(record["dataset"]), str(record["id"])
        trace = traces.pop(key, None)
        problems = ["masks without a trace"] if trace is None else _object(run, record, trace, counts)
        counts["objects"] += 1
        for problem in problems:
            complain(f"{'/'.join(key)}: {problem}")
        counts["problems"] += len(problems)
    for dataset, name in traces:
        complain(f"{dataset}/{name}: no masks")
    counts["problems"] += len(traces)
    return {"run": run.label, **counts}


def _object(run: Evaluation, record: dict[str, Any], trace: Trace, counts: dict[str, int]) -> list[str]:
    """What is wrong with one object."""
    object_, void = decode(record, record["truth"]), decode(record, record.get("void"))
    assert object_ is not None
    truth = object_.astype(np.int8)
    if void is not None:
        truth[void] = -1
    masks: list[np.ndarray] = []
    for number in range(1, len(trace.clicks) + 1):
        mask = decode(record, record["masks"].get(str(number)))
        if mask is None:
            return [f"no mask after click {number}"]
        masks.append(mask)
    return [
        *_scores(run, truth, masks, trace, counts),
        *_clicks(run, record, truth, masks, trace, counts),
        *_image(record, counts),
    ]


def _scores(
    run: Evaluation, truth: np.ndarray, masks: list[np.ndarray], trace: Trace, counts: dict[str, int]
) -> list[str]:
    problems = []
    for name, values in trace.scores.items():
        metric = catalog.resolve("metric", name)
        score = metric(truth, **(run.settings["band"] if getattr(metric, "takes_band", False) else {}))
        for number, (mask, value) in enumerate(zip(masks, values, strict=True), 1):
            counts["scores"] += 1
            found = float(score(mask))
            if abs(found - value) > 1e-9:
                problems.append(f"{name} after click {number} is {found:.6f}, the trace says {value:.6f}")
    if trace.area != int((truth == 1).sum()) or tuple(trace.size) != truth.shape:
        problems.append("size or area of the truth differ from those of the trace")
    return problems


def _clicks(
    run: Evaluation,
    record: dict[str, Any],
    truth: np.ndarray,
    masks: list[np.ndarray],
    trace: Trace,
    counts: dict[str, int],
) -> list[str]:
    """Repeat the annotator: the click that the protocol makes on each mask, and where it stops."""
    settings = run.settings.get("protocols", {}).get(trace.dataset) or run.settings["protocol"]
    protocol = Protocol.model_validate(settings)
    if protocol.refine is not None and protocol.refine.when == "last":
        return []  # the annotator saw other masks than those that were scored
    problems = []
    start = decode(record, record.get("initial"))
    counts["initial_masks"] += start is not None
    before = [np.zeros(truth.shape, bool) if start is None else start, *masks]
    key = f"{trace.dataset}/{trace.id}"
    for number, click in enumerate(trace.clicks):
        counts["clicks"] += 1
        wanted = next_prompt(protocol, truth, before[number], trace.clicks[:number], key)
        if wanted != click:
            problems.append(f"click {number + 1} is {click}, the protocol clicks on {wanted}")
    ended = all(trace.scores[name][-1] >= value for name, value in trace.until.items()) if trace.clicks else False
    finished = ended or len(trace.clicks) >= run.max_clicks
    if not finished and next_prompt(protocol, truth, before[-1], trace.clicks, key) is not None:
        problems.append(f"stopped after {len(trace.clicks)} clicks, below its target")
    early = [k for k in range(len(trace.clicks) - 1) if all(trace.scores[m][k] >= v for m, v in trace.until.items())]
    if early or len(trace.clicks) > run.max_clicks:
        problems.append("has clicks beyond its target or the maximum")
    return problems


def _image(record: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """Compare an image with its hash, if its file is where it was."""
    path = Path(record["image"])
    if record.get("draw") or not path.is_file():
        return []
    counts["images"] += 1
    pixels = read_image(path, span=parse_span(record["range"]) if record.get("range") else None)
    if sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest() == record.get("image_sha256"):
        return []
    return [f"{path}: another image than that of the run"]
