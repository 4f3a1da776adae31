"""Train the default network on one core for a given number of minutes, with a training step after every click.

    pip install 'hrseg[backbones]'
    HRSEG_DATA=DATA python recipes/clicknet/train.py --out runs/clicknet --minutes 100 [--start WEIGHTS.safetensors]

Uses the data of the recipe ``clicknet_photos``. Resumes from ``state.pt`` in the output folder if it exists.
Beyond ``hrseg train``, it trains on the prediction after each click of a batch, not only the last, and uses crops of
several sizes, boxes as prompts, previous masks with errors that the next click corrects, and copies of an object next
to it. Later predictions of a batch mostly train the decoder alone, because the backbone takes two thirds of a step.

Writes ``last.safetensors`` (the moving average of the weights) and ``log.jsonl``, one JSON object per line: losses, and
at intervals the results on held-out objects under the protocol ``fast``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli import catalog
from hrseg_cli.checkpoints.formats import read_checkpoint, save_checkpoint
from hrseg_cli.clicks.sampler import add_next_click, draw
from hrseg_cli.data import views
from hrseg_cli.data.augment import augment, paste
from hrseg_cli.data.samples import load
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.losses import bce, dice, normalized_focal
from hrseg_cli.recipe import Recipe, load_protocol, load_recipe
from hrseg_cli.training.feed import training_images
from hrseg_cli.training.judge import judged_objects
from hrseg_cli.training.step import reduced

ROUNDS = (0.3, 0.3, 0.2, 0.12, 0.08)  # probabilities of 1, 2, ... clicks on a batch
PASTED, TWINS, BOXES, FAULTY = 0.22, 0.2, 0.18, 0.25  # shares of samples
WHOLE_LATER = 0.3  # share of later predictions that train the backbone too


class Prompt(NamedTuple):
    """truth (H, W) int8; points (2N, 3) float32; box (4,) float32; previous (H, W) float32; order of the next click."""

    truth: np.ndarray
    points: np.ndarray
    box: np.ndarray
    previous: np.ndarray
    order: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="clicknet_photos")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--sizes", default="256:4:0.45,352:2:0.35,416:2:0.2", help="crop:batch:share,...")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--backbone", type=float, default=0.15, help="factor on the backbone's learning rate")
    parser.add_argument("--fall", type=float, default=0.0, help="final share of the time with a decaying learning rate")
    parser.add_argument("--start", help="initial weights, from an earlier training")
    parser.add_argument("--hold-norms", action="store_true", help="freeze BatchNorm's running statistics")
    parser.add_argument("--judge-every", type=float, default=24, help="minutes between validations")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    Training(options).run()


class Training:
    """The state of a training and its loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sizes = [
            (int(crop), int(batch), float(share))
            for crop, batch, share in (text.split(":") for text in options.sizes.split(","))
        ]
        self.recipes = {crop: at_size(options.recipe, crop) for crop, _, _ in self.sizes}
        recipe = self.recipe = self.recipes[self.sizes[0][0]]
        self.scenes = Scenes(recipe, options.out.parent / "copies")
        self.model = start(recipe, options)
        self.average = copy.deepcopy(self.model).eval()
        self.norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        groups = self.model.parameter_groups()
        for parameter in groups["fixed"]:
            parameter.requires_grad_(False)
        for block in self.model.encoder.blocks:  # their gradients take a fifth of a step and help little
            block.depthwise.requires_grad_(False)
        trained = [parameter for parameter in groups["backbone"] if parameter.requires_grad]
        self.factors = (1.0, options.backbone)
        self.optimizer = torch.optim.AdamW(
            [{"params": groups["new"]}, {"params": trained}], lr=options.lr, weight_decay=1e-2
        )
        self.judged = judged_objects(recipe, None)
        self.plan = Plan(load_protocol("fast"), {"iou": 0.9}, max_clicks=8)
        self.step = self.trained = 0
        self.before = 0.0  # minutes spent in earlier runs
        self.rng = np.random.default_rng(options.seed)
        state = options.out / "state.pt"
        if state.exists():
            kept = torch.load(state, weights_only=True)
            self.model.load_state_dict(kept["model"])
            self.average.load_state_dict(kept["average"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step, self.trained, self.before = kept["step"], kept["trained"], kept["minutes"]
            self.rng = np.random.default_rng((options.seed, self.step))
        self.began = time.monotonic()

    @property
    def spent(self) -> float:
        """Minutes since the start of this run."""
        return (time.monotonic() - self.began) / 60

    def run(self) -> None:
        losses: dict[bool, list[float]] = {True: [], False: []}  # key: after the first click?
        said, kept, judged = self.step, 0.0, 0.0
        while self.spent < self.options.minutes:
            for turn, loss in enumerate(self.batch()):
                losses[turn == 0].append(loss)
            if self.step - said >= 100:
                said = self.step
                self.say(first=np.mean(losses[True]), later=np.mean(losses[False]) if losses[False] else None)
                losses = {True: [], False: []}
            if self.spent - kept > 4:
                kept = self.spent
                self.keep()
            if self.spent - judged > self.options.judge_every:
                judged = self.spent
                self.judge()
        self.keep()
        self.judge()

    def batch(self) -> list[float]:
        """Train on one batch of objects, with a step after each click. Returns the loss of each step."""
        shares = np.array([share for _, _, share in self.sizes])
        crop, count, _ = self.sizes[int(self.rng.choice(len(self.sizes), p=shares / shares.sum()))]
        items = [self.scenes.sample(self.recipes[crop], self.rng) for _ in range(count)]
        image = torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image, _ in items])).float() / 255
        prompts = [prompt for _, prompt in items]
        truths = [prompt.truth for prompt in prompts]
        truth = torch.from_numpy(np.stack(truths)[:, None]).float()
        points = torch.from_numpy(np.stack([prompt.points for prompt in prompts]))
        boxes = torch.from_numpy(np.stack([prompt.box for prompt in prompts]))
        previous = torch.from_numpy(np.stack([prompt.previous for prompt in prompts])[:, None])
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = self.options.lr * factor * self.rate()
        self.model.train()
        if self.options.hold_norms:  # statistics of small batches are noisy
            for norm in self.norms:
                norm.eval()
        with torch.no_grad():
            features = self.model.encode(image)
        seen = []
        rounds = int(self.rng.choice(len(ROUNDS), p=ROUNDS)) + 1
        whole = self.model.encoder.level
        for turn in range(rounds):
            if turn and self.rng.random() >= WHOLE_LATER:
                self.model.encoder.level = torch.no_grad()(whole)
            out = self.model.decode(features, previous, points, boxes)
            self.model.encoder.level = whole
            loss = loss_of(out, truth).mean()
            if not torch.isfinite(loss):
                raise SystemExit(f"the loss became NaN or infinite at step {self.step}; lower --lr")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            self.update_average()
            self.step += 1
            self.trained += count
            seen.append(loss.item())
            if turn + 1 < rounds:
                previous = out["logits"].detach().sigmoid()
                clicked = [
                    add_next_click(old, mask, wanted, order=prompt.order + turn, rng=self.rng, off_centre=0.15)
                    for old, mask, wanted, prompt in zip(
                        points.numpy(), previous[:, 0].numpy(), truths, prompts, strict=True
                    )
                ]
                points = torch.from_numpy(np.stack(clicked))
        return seen

    def rate(self) -> float:
        """Factor on the learning rate: linear warm-up, constant, cosine decay."""
        rise = min(1.0, (self.step + 1) / 200)
        share = self.spent / self.options.minutes
        if not self.options.fall or share < 1 - self.options.fall:
            return rise
        fallen = (share - 1 + self.options.fall) / self.options.fall
        return rise * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, fallen))) / 2)

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the moving average of the weights."""
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        pairs = zip(self.model.state_dict().values(), self.average.state_dict().values(), strict=True)
        for new, old in pairs:
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)

    def judge(self) -> None:
        """Log NoC@90 (at most 8 clicks) and the IoU after 1, 3 and 8 clicks on the held-out objects."""
        rows = []
        for ref in self.judged:
            trace, _ = simulate(load(ref), self.average, self.plan)
            scores = trace.scores["iou"]
            reached = next((k + 1 for k, score in enumerate(scores) if score >= 0.9), 8)
            rows.append((reached, *(scores[min(k, len(scores)) - 1] for k in (1, 3, 8))))
        names = ("noc90_of_8", "iou1", "iou3", "iou8")
        self.say(**dict(zip(names, np.mean(rows, 0), strict=True)))

    def say(self, **values: Any) -> None:
        numbers = {name: round(float(value), 4) for name, value in values.items() if value is not None}
        line = {"step": self.step, "trained": self.trained, "minutes": round(self.before + self.spent, 2), **numbers}
        print(json.dumps(line), flush=True)
        with (self.options.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def keep(self) -> None:
        """Save the state to resume from, then the averaged weights, each file atomically."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "trained": self.trained,
            "minutes": self.before + self.spent,
        }
        torch.save(state, self.options.out / "state.tmp")
        os.replace(self.options.out / "state.tmp", self.options.out / "state.pt")
        save_checkpoint(self.average, self.options.out / "last.safetensors", {"recipe": self.recipe.name}, half=True)


def at_size(recipe: str, crop: int) -> Recipe:
    scale = [0.45 * crop / 320, 1.5 * crop / 320 + 0.2]
    return load_recipe(
        recipe,
        [f"data.crop=[{crop},{crop}]", f"data.min_area={200 if crop < 300 else 350}", f"data.augment.scale={scale}"],
    )


def start(recipe: Recipe, options: argparse.Namespace) -> Any:
    torch.manual_seed(options.seed)
    if options.start:
        model, _ = read_checkpoint(Path(options.start))
        return model.requires_grad_(True).to(memory_format=torch.channels_last)
    model = catalog.resolve("model", recipe.model.name)(**recipe.model.options)
    model.initialise(catalog.resolve("backbone", str(recipe.model.backbone))(), recipe.model.coverage)
    return model.to(memory_format=torch.channels_last)


def loss_of(out: dict[str, Tensor], truth: Tensor) -> Tensor:
    """Loss per sample, with extra weight on pixels within two of the object's boundary."""
    logits, known = out["logits"], truth.clamp(min=0)
    total = 0.5 * bce(logits, truth, over="valid") + 0.5 * normalized_focal(logits, truth) + dice(logits, truth)
    edge = (F.max_pool2d(known, 5, 1, 2) + F.max_pool2d(-known, 5, 1, 2)) * (truth >= 0)
    pixels = F.binary_cross_entropy_with_logits(logits, known, reduction="none") * edge
    total = total + 0.25 * pixels.sum((1, 2, 3)) / (edge.sum((1, 2, 3)) + 1)
    coarse = {name: reduced(truth, out[name].shape[-2:]) for name in ("aux4", "aux16")}
    total = total + 0.2 * bce(out["aux4"], coarse["aux4"]) + 0.3 * bce(out["aux16"], coarse["aux16"])
    return total + 0.2 * dice(out["aux16"], coarse["aux16"])


class Scenes:
    """Samples from the recipe's photographs. Every file is decoded once and kept in memory."""

    def __init__(self, recipe: Recipe, cache: Path) -> None:
        keep: Callable[..., Any] = lru_cache(None)
        views.read_image, views.read_mask = keep(views.read_image), keep(views.read_mask)
        self.data = recipe.data
        self.parts = training_images(recipe.data, None, cache)
        weights = np.array([part.weight or 0.0 for part in recipe.data.parts])
        self.shares = weights / weights.sum()
        self.orders: list[list[int]] = [[] for _ in self.parts]

    def scene(self, limit: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        part = int(rng.choice(len(self.parts), p=self.shares))
        if not self.orders[part]:
            self.orders[part] = rng.permutation(len(self.parts[part])).tolist()
        refs = self.parts[part][self.orders[part].pop()]
        if len(refs) > limit:
            refs = tuple(refs[k] for k in np.sort(rng.choice(len(refs), limit, replace=False)))
        scene = views.load_scene(refs)
        truths = scene.truths
        if any(ref.stuff is not None for ref in scene.refs) and rng.random() >= self.data.parts[part].stuff:
            truths = truths[[ref.stuff is None for ref in scene.refs]]
        return scene.image, truths

    def sample(self, recipe: Recipe, rng: np.random.Generator) -> tuple[np.ndarray, Prompt]:
        data = recipe.data
        while True:
            image, truths = self.scene(data.max_objects, rng)
            if not len(truths):
                continue
            kind = rng.random()
            if kind < PASTED:
                donor, objects = self.scene(3, rng)
                if len(objects):
                    image, truths = paste(image, truths, donor, objects[0], rng, data.composite)
            elif kind < PASTED + TWINS:
                image, truths = twins(image, truths, recipe, rng)
            image, truths = augment(image, truths, data.crop, data.augment, rng)
            targets = truths[(truths == 1).sum((1, 2)) >= data.min_area]
            if len(targets):
                return image, prompt_for(targets, (truths != 0).any(0), recipe, rng)


def twins(
    image: np.ndarray, truths: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paste one or two copies of an object, which negative clicks must exclude."""
    number = int(rng.integers(len(truths)))
    area = float((truths[number] == 1).mean())
    if not 0.004 < area < 0.35:
        return image, truths
    settings = recipe.data.composite.model_copy(update={"area": (0.6 * area, 1.5 * area), "colour": (0.0, 0.2)})
    source, truth = image, truths[number]
    for _ in range(int(rng.integers(1, 3))):
        image, truths = paste(image, truths, source, truth, rng, settings)
    return image, truths


def prompt_for(targets: np.ndarray, labelled: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> Prompt:
    drawn = draw(targets, labelled, rng, recipe.clicks)
    truth, points, order = drawn.truth, drawn.points, 1
    box, previous = np.full(4, -1, np.float32), np.zeros(truth.shape, np.float32)
    inside = truth == 1
    if inside.any():
        if rng.random() < BOXES:
            rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            height, width = rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
            ends = np.array([rows[0], cols[0], rows[-1], cols[-1]])
            ends = ends + rng.normal(0, 0.05, 4) * (height, width, height, width)
            box = ends.clip(0, truth.shape[0] - 1).round().astype(np.float32)
            if rng.random() < 0.7:
                points = np.full_like(points, -1)
        elif rng.random() < FAULTY:
            previous, order = faulty(inside, targets, truth, rng), 2
            points = add_next_click(points, previous, truth, order=1, rng=rng, off_centre=0.15)
    return Prompt(truth, points, box, previous, order)


def faulty(inside: np.ndarray, targets: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 (H, W): a mask with typical errors of a network: a neighbouring object included, a part missing or an
    extra blob; then a shifted boundary, and blur."""
    mask = inside.copy()
    kind = rng.random()
    others = [target == 1 for target in targets if ((target == 1) & (truth == 0)).sum() > 50]
    if others and kind < 0.55:
        mask |= others[rng.integers(len(others))]
    else:
        rows, cols = np.nonzero(inside)
        place, size = rng.integers(len(rows)), math.sqrt(len(rows)) * rng.uniform(0.3, 0.9)
        away = rng.normal(0, size, 2) if kind >= 0.8 else (0, 0)
        centre = int(cols[place] + away[0]), int(rows[place] + away[1])
        axes = int(size) + 2, int(size * rng.uniform(0.4, 1)) + 2
        blob = np.zeros(mask.shape, np.uint8)
        cv2.ellipse(blob, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)
        mask = mask | (blob > 0) if kind >= 0.8 else mask & (blob == 0)
    change = int(rng.choice([cv2.MORPH_DILATE, cv2.MORPH_ERODE, cv2.MORPH_OPEN, cv2.MORPH_CLOSE]))
    side = int(rng.integers(4)) * 2 + 1
    changed = cv2.morphologyEx(mask.astype(np.uint8), change, np.ones((side, side), np.uint8)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(changed, (0, 0), rng.uniform(0.5, 4)))


if __name__ == "__main__":
    main()
