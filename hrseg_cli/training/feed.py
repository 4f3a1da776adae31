"""Training samples as a pure function of (seed, epoch, step), independent of the process that computes them, and a
loader that can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hrseg_cli.clicks.sampler import draw, draw_close_up
from hrseg_cli.data.augment import augment, close_up, paste
from hrseg_cli.data.datasets import in_held_out, open_dataset, open_for_training
from hrseg_cli.data.paths import below
from hrseg_cli.data.samples import Ref
from hrseg_cli.data.views import Images, Scene, cache_longest, epoch_order, identity, load_scene
from hrseg_cli.errors import HrsegError
from hrseg_cli.losses import signed_distance
from hrseg_cli.recipe import Data, Recipe
from hrseg_cli.recipe.training import Part
from hrseg_cli.refiners.coarse import perturbed

Batch = dict[str, Tensor]
_DONOR_TRIES = 5
_CLOSE_UP_IOU = 0.6  # of the previous mask of a close-up, at most


def training_images(data: Data, root: Path | None, cache: Path) -> list[Images]:
    """The training images of each part, without held-out ones.

    cache: folder for smaller copies, if the recipe uses them. Raises HrsegError for a part without training images.
    """
    parts = []
    for part in data.parts:
        refs = open_part(part, root)
        if data.held_out:
            refs = [ref for ref in refs if not in_held_out(ref, data.held_out, part.group)]
        if not len(refs):
            raise HrsegError(f"data.parts: all of {part.dataset} is held out; lower data.held_out")
        if data.longest and not refs[0].draw:
            # Datasets with the same name and ids must not overwrite each other's copies.
            key = "".join(one[:8] for one in identity(refs, cache))
            name = f"{refs[0].dataset}-{data.longest}-{key}"
            copies = below(cache, name, f"data.parts: {part.dataset}")
            refs = open_dataset(str(cache_longest(refs, copies, data.longest, wait=True)))
        parts.append(Images(refs))
    return parts


def held_out_objects(data: Data, root: Path | None) -> list[list[Ref]]:
    """The held-out objects of each part; parts without any, and drawn ones, are omitted."""
    parts = [
        [ref for ref in open_part(part, root) if in_held_out(ref, data.held_out, part.group) and not ref.draw]
        for part in data.parts
    ]
    return [part for part in parts if part]


def open_part(part: Part, root: Path | None) -> Sequence[Ref]:
    """The objects of a part of the training data."""
    return open_for_training(part.dataset, root=root, instances=part.instances, binarize=part.binarize)


class Feed(Dataset[Batch]):
    """Training samples by (epoch, step).

    image: uint8 (3, h, w), RGB. truth: int8 (1, h, w), 1 object, 0 background, -1 ignored. points: float32 (2N, 3), see
    :mod:`hrseg_cli.models.parts.click_maps`. key: int64 (2), epoch and step. distance: float32 (1, h, w), signed
    distance to the object's edge, if the recipe has a boundary loss. previous: float32 (1, h, w), the mask before the
    first click, if the recipe has close-ups.
    """

    def __init__(self, images: Sequence[Images], recipe: Recipe) -> None:
        self.images, self.recipe = images, recipe
        data = recipe.data
        sizes = [len(part) for part in images]
        weights = [size if part.weight is None else part.weight for part, size in zip(data.parts, sizes, strict=True)]
        self._order = lru_cache(maxsize=2)(
            lambda epoch: epoch_order(sizes, data.epoch, seed=recipe.seed, epoch=epoch, weights=weights)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"images": self.images, "recipe": self.recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the cache of the order cannot be pickled

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, step = key
        data = self.recipe.data
        rng = np.random.default_rng((self.recipe.seed, epoch, step))
        part, index = self._order(epoch)[step]
        refs = self.images[part][int(index)]
        if len(refs) > data.max_objects:
            chosen = np.sort(rng.choice(len(refs), data.max_objects, replace=False))
            refs = tuple(refs[k] for k in chosen)
        scene = load_scene(refs)
        image, truths = scene.image, scene.truths
        if any(ref.stuff is not None for ref in scene.refs) and rng.random() >= data.parts[part].stuff:
            truths = truths[[ref.stuff is None for ref in scene.refs]]
        if rng.random() < data.composite.probability:
            donor, truth = self._donor(epoch, rng)
            image, truths = paste(image, truths, donor, truth, rng, data.composite)
        focus = self.recipe.clicks.focus
        view = close_up(image, truths, data.crop, data.augment, rng) if focus and rng.random() < focus else None
        if view is not None:
            image, task = view[0], self._close_up(view[1], rng)
        else:
            image, truths = augment(image, truths, data.crop, data.augment, rng)
            task = self._task(truths, rng)
            if focus:
                task["previous"] = torch.zeros(task["truth"].shape)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "key": torch.tensor([epoch, step]),
            **task,
        }

    def _close_up(self, truth: np.ndarray, rng: np.random.Generator) -> Batch:
        previous = perturbed(truth == 1, rng, _CLOSE_UP_IOU)
        points = draw_close_up(truth, rng, self.recipe.clicks.max_points)
        batch = self._shared(truth)
        batch["points"] = torch.from_numpy(points)
        batch["previous"] = torch.from_numpy(previous[None].astype(np.float32))
        return batch

    def _shared(self, truth: np.ndarray) -> Batch:
        """The truth, and its distances for a boundary loss."""
        batch = {"truth": torch.from_numpy(truth[None])}
        if boundary := self.recipe.boundary:
            batch["distance"] = torch.from_numpy(signed_distance(truth, **boundary.options)[None])
        return batch

    def _task(self, truths: np.ndarray, rng: np.random.Generator) -> Batch:
        """What is to be predicted in a crop, and what is known of it. truths: int8 (N, h, w), of all its objects."""
        objects = truths == 1
        targets = truths[objects.sum((1, 2)) >= self.recipe.data.min_area]
        drawn = draw(targets, (truths != 0).any(0), rng, self.recipe.clicks)
        if not len(targets):
            drawn.truth[(truths == -1).any(0) & ~objects.any(0)] = -1
        return {**self._shared(drawn.truth), "points": torch.from_numpy(drawn.points)}

    def _donor(self, epoch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """An image and one of its objects, from a random step; after a few tries a tiny object is accepted."""
        order = self._order(epoch)
        for _ in range(_DONOR_TRIES):
            part, index = order[rng.integers(len(order))]
            refs = self.images[part][int(index)]
            scene: Scene = load_scene((refs[rng.integers(len(refs))],))
            truth = scene.truths[0]
            if (truth == 1).mean() > 0.01:
                break
        return scene.image, truth


class Order(Sampler[list[tuple[int, int]]]):
    """The (epoch, step) keys of each batch of this rank; all ranks together take consecutive steps."""

    def __init__(self, steps: int, batch: int, rank: int, world: int) -> None:
        self.batch, self.rank, self.world = batch, rank, world
        self.batches = steps // (batch * world)
        self.epoch = self.done = 0
        if not self.batches:
            raise HrsegError(f"data.epoch={steps}: fewer samples than one batch of {batch} x {world}; raise it")

    def __len__(self) -> int:
        return self.batches

    @property
    def sampler(self) -> Order:
        """The Trainer calls ``set_epoch`` on this attribute."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for number in range(self.done, self.batches):
            first = (number * self.world + self.rank) * self.batch
            yield [(epoch, first + k) for k in range(self.batch)]


class Loader(DataLoader[Batch]):
    """Resumes at the exact batch at which a checkpoint was saved: the Trainer stores ``state_dict`` in it."""

    def __init__(self, feed: Feed, order: Order, workers: int, pin: bool = False) -> None:
        self.order = order
        super().__init__(
            feed,
            batch_sampler=order,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            self.order.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.order.epoch, "done": self.order.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.epoch, self.order.done = state["epoch"], state["done"]


def _start_worker(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job; only the trainer reacts
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
