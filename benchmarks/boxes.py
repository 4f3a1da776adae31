"""Mean IoU of a box around each object, compared with one click and with the filled box.

    python benchmarks/boxes.py clicknet_m --dataset FOLDER [--dataset FOLDER] [--limit N] [--ids FILE] [--root FOLDER]

Columns: the filled box as a mask; one click; the true box; a box whose edges are moved by up to 5 % of its sides; the
true box and one click on the largest error; then the difference in pairs between the true box and the better of the
first two, with a 95 % bootstrap interval over objects.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hrseg_cli.clicks.annotator import box_around
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import Ref, load
from hrseg_cli.engine.devices import one_thread
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.interaction import Sample
from hrseg_cli.metrics.masks import iou
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol, load_protocol

PROMPTS = ("filled box", "click", "box", "box +-5 %", "box, click")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--dataset", action="append", required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--ids", type=Path, help="JSON, {dataset name: [ids]}: only these objects")
    parser.add_argument("--limit", type=int, default=20, help="objects of a dataset, evenly spread")
    parser.add_argument("--protocol", default="fast")
    options = parser.parse_args()
    one_thread()
    protocol = load_protocol(options.protocol)
    wanted = json.loads(options.ids.read_text()) if options.ids else {}
    print(f"| model | objects | {' | '.join(PROMPTS)} | box - better of click and filled |")
    print("|" + "---|" * (len(PROMPTS) + 3))
    for name in options.model:
        model, _ = open_model(name)
        for dataset in options.dataset:
            refs = list(chosen(open_dataset(dataset, root=options.root), wanted, options.limit))
            scores = np.array([scores_of(model, load(ref), protocol) for ref in refs])
            means = " | ".join(f"{mean:.3f}" for mean in scores.mean(0))
            print(f"| {name} | {refs[0].dataset} ({len(refs)}) | {means} | {gain(scores)} |", flush=True)


def chosen(refs: Sequence[Ref], wanted: dict[str, list[str]], limit: int) -> Iterator[Ref]:
    """The wanted objects, at most ``limit``, evenly spread."""
    refs = [ref for ref in refs if ref.id in wanted.get(ref.dataset, [ref.id])]
    for place in np.linspace(0, len(refs) - 1, min(limit, len(refs))).round().astype(int):
        yield refs[place]


def scores_of(model: InteractiveModel, sample: Sample, protocol: Protocol) -> list[float]:
    """IoU of each of :data:`PROMPTS`."""
    box = box_around(sample.truth == 1)
    assert box is not None
    filled = np.zeros(sample.truth.shape, bool)
    filled[box.top : box.bottom + 1, box.left : box.right + 1] = True

    def scores(prompts: int, **changes: object) -> tuple[float, ...]:
        plan = Plan(protocol.model_copy(update=changes), {"iou": 2}, prompts)
        return simulate(sample, model, plan)[0].scores["iou"]

    (clicked,), (loose,) = scores(1), scores(1, first="box", box_jitter=0.05)
    boxed = scores(2, first="box", click_when_perfect=False)
    return [iou(filled, sample.truth), clicked, boxed[0], loose, boxed[-1]]


def gain(scores: np.ndarray) -> str:
    """Difference between the box and the better of the filled box and the click on average, with its interval."""
    better = int(scores[:, :2].mean(0).argmax())
    apart = scores[:, 2] - scores[:, better]
    random = np.random.default_rng(0)
    means = apart[random.integers(0, len(apart), (10_000, len(apart)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{apart.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
