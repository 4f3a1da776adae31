"""Masks before and after each refiner: IoU, Boundary IoU, mean boundary accuracy, seconds and memory per object.

    python benchmarks/refiners.py --dataset davis:held=0.1 --dataset procedural:count=4,size=2048 [--limit N]
    python benchmarks/refiners.py --dataset ... --noc guided_filter     clicks with a refiner after each, and without

Coarse masks come from three sources: a model after one click, after five, and the ground truth made coarse to an IoU of
about 0.8. All refiners get the same masks; a model's masks are probabilities. Intervals are 95 % bootstrap intervals
over objects of the mean, and of the mean change. Seconds are CPU seconds of one thread; memory is the peak that the
refiner adds to the process (Linux only), the maximum over objects. Results are appended to --out, one JSON line each;
finished objects are skipped by the next call.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hrseg_cli import catalog
from hrseg_cli.clicks.annotator import next_click
from hrseg_cli.data.datasets import open_datasets
from hrseg_cli.data.samples import Ref, load
from hrseg_cli.engine.devices import one_thread
from hrseg_cli.engine.refining import open_refiner
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.interaction import Click, Sample
from hrseg_cli.metrics.masks import BoundaryIoU, IoU, MeanBoundaryAccuracy
from hrseg_cli.metrics.noc import interval, noc
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Refine, load_protocol
from hrseg_cli.refiners.coarse import coarsened

METRICS = {"iou": IoU, "biou": BoundaryIoU, "mba": MeanBoundaryAccuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--protocol", default="fast")
    parser.add_argument("--refiner", action="append", help="a name, or NAME=WEIGHTS [all that need no weights]")
    parser.add_argument("--dataset", action="append", required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--limit", type=int, default=10, help="objects per dataset, evenly spread")
    parser.add_argument("--noc", metavar="REFINER", action="append", default=[], help="count clicks instead")
    parser.add_argument("--max-clicks", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/refiners.jsonl"))
    options = parser.parse_args()
    one_thread()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    refs = list(_spread(options))
    model, _ = open_model(options.model)
    if options.noc:
        _count(options, model, refs)
    else:
        _compare(options, model, refs)


def _spread(options: argparse.Namespace) -> Iterator[Ref]:
    by_set: dict[str, list[Ref]] = defaultdict(list)
    for ref in open_datasets(options.dataset, root=options.root).refs:
        by_set[ref.dataset].append(ref)
    for refs in by_set.values():
        wanted = min(options.limit, len(refs))
        yield from (refs[int(k)] for k in np.linspace(0, len(refs) - 1, wanted).round())


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _compare(options: argparse.Namespace, model: InteractiveModel, refs: list[Ref]) -> None:
    refiners = []
    for spec in options.refiner or [name for name in catalog.REFINERS if name != "segrefiner"]:
        name, _, weights = spec.partition("=")
        refiners.append(open_refiner(Refine(name=name, weights=weights or None)))
    done = {(row["set"], row["id"], row["refiner"]) for row in _rows(options.out)}
    for ref in refs:
        left = [one for one in refiners if (ref.dataset, ref.id, one.settings.name) not in done]
        if not left:
            continue
        sample = load(ref)
        metrics = {name: metric(sample.truth) for name, metric in METRICS.items()}
        for source, (coarse, clicks) in _coarse(sample, model, options.protocol).items():
            before = {name: metric(coarse > 0.5) for name, metric in metrics.items()}
            for refiner in left:
                with _Cost() as cost:
                    refined = refiner(sample.image, coarse, clicks, model)
                after = {name: metric(refined > 0.5) for name, metric in metrics.items()}
                row = {"set": ref.dataset, "id": ref.id, "refiner": refiner.settings.name, "source": source}
                row |= {"before": before, "after": after, "seconds": cost.seconds, "mb": cost.mb}
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    _table(_rows(options.out))


def _coarse(sample: Sample, model: InteractiveModel, protocol: str) -> dict[str, tuple[np.ndarray, list[Click]]]:
    """Source -> coarse probability and the clicks it was made with."""
    session = Session(model, sample.image, load_protocol(protocol), undo=0)
    found, clicks = {}, []
    for number in range(1, 6):
        if (click := next_click(sample.truth, session.mask, clicks)) is None:
            break
        session.click(click)
        clicks.append(click)
        if number in (1, 5):
            found[f"{number} clicks"] = session.probability.copy(), list(clicks)
    rng = np.random.default_rng(zlib.crc32(sample.id.encode()))
    found["synthetic"] = coarsened(sample.truth == 1, rng).astype(np.float32), []
    return found


class _Cost:
    """CPU seconds of a block, and how far it raised the peak memory of the process."""

    def __enter__(self) -> _Cost:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from the current size
        self._start, self._base = time.process_time(), _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = round(time.process_time() - self._start, 3)
        self.mb = round(max(0, _status("VmHWM") - self._base) / 1024)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _table(rows: list[dict[str, Any]]) -> None:
    print("| set | source | refiner | n | IoU | bIoU | mBA | s | MB |\n|---|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for name in (row["set"], "all"):
            groups[name, row["source"], row["refiner"]].append(row)
    told = set()
    for (name, source, refiner), its in sorted(groups.items()):
        if (name, source) not in told:
            told.add((name, source))
            cells = [f"{100 * np.mean([row['before'][metric] for row in its]):.1f}" for metric in METRICS]
            print(f"| {name} | {source} | none | {len(its)} | {' | '.join(cells)} | | |")
        cells = []
        for metric in METRICS:
            change = 100 * np.array([row["after"][metric] - row["before"][metric] for row in its])
            low, high = interval(change, np.ones(len(its)))
            cells.append(f"{change.mean():+.1f} [{low:+.1f}, {high:+.1f}]")
        seconds, mb = np.mean([row["seconds"] for row in its]), max(row["mb"] for row in its)
        print(f"| {name} | {source} | {refiner} | {len(its)} | {' | '.join(cells)} | {seconds:.2f} | {mb} |")


def _count(options: argparse.Namespace, model: InteractiveModel, refs: list[Ref]) -> None:
    """NoC@90 by IoU and by Boundary IoU, with each refiner after every click, and with none."""
    done = {(row["set"], row["id"], row["refiner"]): row for row in _rows(options.out)}
    for ref in refs:
        for name in ("none", *options.noc):
            if (ref.dataset, ref.id, name) in done:
                continue
            changes = [] if name == "none" else [f"refine.name={name}"]
            plan = Plan(load_protocol(options.protocol, changes), {"iou": 0.9, "biou": 0.9}, options.max_clicks)
            trace, _ = simulate(load(ref), model, plan)
            row = {"set": ref.dataset, "id": ref.id, "refiner": name}
            row |= {key: noc(trace.scores[key], 0.9, options.max_clicks) for key in ("iou", "biou")}
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    rows = _rows(options.out)
    base = {(row["set"], row["id"]): row for row in rows if row["refiner"] == "none"}
    print("| refiner | n | NoC@90 | change | bIoU NoC@90 | change |\n|---|---|---|---|---|---|")
    for name in ("none", *options.noc):
        its = [row for row in rows if row["refiner"] == name]
        cells = []
        for key in ("iou", "biou"):
            change = np.array([row[key] - base[row["set"], row["id"]][key] for row in its], float)
            low, high = interval(change, np.ones(len(its)))
            cells += [f"{np.mean([row[key] for row in its]):.2f}", f"{change.mean():+.2f} [{low:+.2f}, {high:+.2f}]"]
        print(f"| {name} | {len(its)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
