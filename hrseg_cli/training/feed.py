"""Training samples as a pure function of (seed, epoch, step), independent of the process that computes them, and a
loader that can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from hrseg_cli.clicks.sampler import Drawn, draw, draw_close_up
from hrseg_cli.data.augment import augment, close_up, duplicate, paste
from hrseg_cli.data.datasets import in_held_out, open_dataset, open_for_training
from hrseg_cli.data.paths import below
from hrseg_cli.data.samples import Ref
from hrseg_cli.data.views import Decoded, Images, apportion, cache_longest, epoch_order, identity, load_scene
from hrseg_cli.errors import HrsegError
from hrseg_cli.losses import signed_distance
from hrseg_cli.recipe import Data, Recipe
from hrseg_cli.recipe.training import Part
from hrseg_cli.refiners.coarse import perturbed

Batch = dict[str, Tensor]
Key = tuple[int, int, int]  # epoch, step and index of the crop size
_TRIES = 5  # images tried for a large enough object, before one without is accepted
_CLOSE_UP_IOU = 0.6  # of the previous mask of a close-up, at most


def training_images(data: Data, root: Path | None, cache: Path, broken: list[str] | None = None) -> list[Images]:
    """The training images of each part, without held-out ones.

    cache: folder for smaller copies, if the recipe uses them. broken: see :func:`open_part`.
    Raises HrsegError for a part without training images.
    """
    parts = []
    for part in data.parts:
        refs = open_part(part, root, broken)
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


def held_out_objects(data: Data, root: Path | None, broken: list[str] | None = None) -> list[list[Ref]]:
    """The held-out objects of each part; parts without any, and drawn ones, are omitted."""
    parts = [
        [ref for ref in open_part(part, root, broken) if in_held_out(ref, data.held_out, part.group) and not ref.draw]
        for part in data.parts
    ]
    return [part for part in parts if part]


def open_part(part: Part, root: Path | None, broken: list[str] | None = None) -> Sequence[Ref]:
    """The objects of a part of the training data. broken: with a list, broken files are left out and added to it."""
    return open_for_training(part.dataset, root=root, instances=part.instances, binarize=part.binarize, broken=broken)


class Feed(Dataset[Batch]):
    """Training samples by (epoch, step, index of the crop size).

    image: uint8 (3, h, w), RGB. truth: int8 (1, h, w), 1 object, 0 background, -1 ignored. points: float32 (2N, 3), see
    :mod:`hrseg_cli.models.parts.click_maps`. key: int64 (2), epoch and step. Where the recipe asks for them: box:
    float32 (4); previous: float32 (1, h, w), and corrections: int64 (), see :class:`hrseg_cli.clicks.sampler.Drawn`;
    distance: float32 (1, h, w), signed distance to the object's edge, for the boundary loss.
    """

    def __init__(self, images: Sequence[Images], recipe: Recipe) -> None:
        self.images, self.recipe = images, recipe
        self.decoded = Decoded(recipe.data.cache * 10**6)
        self._data = [recipe.data.at(size.crop) for size in recipe.sizes]
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

    def __getitem__(self, key: Key) -> Batch:
        epoch, step, size = key
        data, focus = self._data[size], self.recipe.clicks.focus
        rng = np.random.default_rng((self.recipe.seed, epoch, step))
        part, index = self._order(epoch)[step]
        task: Batch | None = None
        for _ in range(_TRIES):
            image, truths = self._scene(epoch, part, index, data, rng)
            view = close_up(image, truths, data.crop, data.augment, rng) if focus and rng.random() < focus else None
            if view is not None:
                image, task = view[0], self._close_up(view[1], rng)
                break
            image, truths = augment(image, truths, data.crop, data.augment, rng)
            if data.augment.keep_background or ((truths == 1).sum((1, 2)) >= data.min_area).any():
                break
            part, index = self._any(epoch, rng)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "key": torch.tensor([epoch, step]),
            **(task or self._task(truths, data, rng)),
        }

    def _task(self, truths: np.ndarray, data: Data, rng: np.random.Generator) -> Batch:
        """What is to be predicted in a crop, and what is known of it. truths: int8 (N, h, w), of all its objects."""
        objects = truths == 1
        targets = truths[objects.sum((1, 2)) >= data.min_area]
        drawn = draw(targets, (truths != 0).any(0), rng, self.recipe.clicks)
        if not len(targets):
            drawn.truth[(truths == -1).any(0) & ~objects.any(0)] = -1
        return self._prompted(drawn)

    def _close_up(self, truth: np.ndarray, rng: np.random.Generator) -> Batch:
        previous = perturbed(truth == 1, rng, _CLOSE_UP_IOU).astype(np.float32)
        points = draw_close_up(truth, rng, self.recipe.clicks.max_points)
        return self._prompted(Drawn(truth, points, np.full(4, -1, np.float32), previous, 0))

    def _prompted(self, drawn: Drawn) -> Batch:
        clicks = self.recipe.clicks
        batch = {"truth": torch.from_numpy(drawn.truth[None]), "points": torch.from_numpy(drawn.points)}
        if clicks.box_probability:
            batch["box"] = torch.from_numpy(drawn.box)
        if clicks.perturbed_probability or clicks.focus:
            previous = np.zeros(drawn.truth.shape, np.float32) if drawn.previous is None else drawn.previous
            batch |= {"previous": torch.from_numpy(previous[None]), "corrections": torch.tensor(drawn.corrections)}
        if boundary := self.recipe.boundary:
            batch["distance"] = torch.from_numpy(signed_distance(drawn.truth, **boundary.options)[None])
        return batch

    def _scene(
        self, epoch: int, part: int, index: int, data: Data, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """An image and its objects, some of them possibly pasted in."""
        refs = self.images[part][int(index)]
        if len(refs) > data.max_objects:
            chosen = np.sort(rng.choice(len(refs), data.max_objects, replace=False))
            refs = tuple(refs[k] for k in chosen)
        scene = load_scene(refs, self.decoded)
        image, truths = scene.image, scene.truths
        if any(ref.stuff is not None for ref in scene.refs) and rng.random() >= data.parts[part].stuff:
            truths = truths[[ref.stuff is None for ref in scene.refs]]
        kind = rng.random()
        if kind < data.composite.probability:
            donor, truth = self._donor(epoch, rng)
            return paste(image, truths, donor, truth, rng, data.composite)
        if kind < data.composite.probability + data.composite.duplicate and len(truths):
            return duplicate(image, truths, rng, data.composite)
        return image, truths

    def _donor(self, epoch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """An image and one of its objects, from a random step; after a few tries a tiny object is accepted."""
        for _ in range(_TRIES):
            part, index = self._any(epoch, rng)
            refs = self.images[part][int(index)]
            scene = load_scene((refs[rng.integers(len(refs))],), self.decoded)
            truth = scene.truths[0]
            if (truth == 1).mean() > 0.01:
                break
        return scene.image, truth

    def _any(self, epoch: int, rng: np.random.Generator) -> tuple[int, int]:
        """Part and index of the image of a random step."""
        order = self._order(epoch)
        part, index = order[rng.integers(len(order))]
        return int(part), int(index)


def batches(recipe: Recipe, epoch: int, world: int) -> np.ndarray:
    """int64, (batches, 2): index of the crop size, and number of corrective rounds, of each batch of an epoch.

    Sizes get exactly their shares, and so do rounds that are steps of their own: every epoch has the same number of
    batches and steps. world: number of processes, each of which takes such a batch. Raises HrsegError for an epoch that
    is too short.
    """
    total = sum(size.share for size in recipe.sizes)
    counts = []
    for size in recipe.sizes:
        counts.append(int(recipe.data.epoch * size.share / total + 1e-9) // (size.batch * world))
        if not counts[-1]:
            raise HrsegError(
                f"data.epoch={recipe.data.epoch}: fewer samples than one batch of {size.batch} x {world}"
                f"{f' at {size.crop[0]}x{size.crop[1]}' if recipe.data.sizes else ''}; raise it"
            )
    rng = np.random.default_rng((recipe.seed, epoch, 0, 0, 1))  # of no sample
    sizes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    shares = np.array(recipe.clicks.round_shares)
    if recipe.clicks.trained == "every":
        rounds = rng.permutation(np.repeat(np.arange(len(shares)), apportion(len(sizes), shares)))
    else:
        rounds = rng.choice(len(shares), len(sizes), p=shares / shares.sum())
    return np.stack([sizes, rounds], 1)


def steps_per_epoch(recipe: Recipe, world: int) -> int:
    """Number of predictions that are trained in an epoch."""
    found = batches(recipe, 0, world)
    return len(found) + (int(found[:, 1].sum()) if recipe.clicks.trained == "every" else 0)


class Order(Sampler[list[Key]]):
    """The keys of each batch of this rank; all ranks together take consecutive steps."""

    def __init__(self, recipe: Recipe, rank: int, world: int) -> None:
        self.recipe, self.rank, self.world = recipe, rank, world
        self.epoch = self.done = 0

    def __len__(self) -> int:
        return len(batches(self.recipe, self.epoch, self.world))

    @property
    def sampler(self) -> Order:
        """The Trainer calls ``set_epoch`` on this attribute."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, done, sizes = self.epoch, self.done, self.recipe.sizes
        first = 0
        for number, (size, _) in enumerate(batches(self.recipe, epoch, self.world).tolist()):
            batch = sizes[size].batch
            if number >= done:
                mine = first + self.rank * batch
                yield [(epoch, mine + k, size) for k in range(batch)]
            first += batch * self.world


class Loader(DataLoader[Batch]):
    """The batches of an epoch, each once per prediction that is trained, with "turn", int64 (3): number of the batch,
    corrective rounds before this prediction, and before the batch's last one. After the first, only "turn" is given.

    Resumes at the exact batch at which a checkpoint was saved: the Trainer stores ``state_dict`` in it.
    """

    def __init__(self, feed: Feed, order: Order, workers: int, pin: bool = False) -> None:
        self.order = order
        self._length = steps_per_epoch(order.recipe, order.world)
        super().__init__(
            feed,
            batch_sampler=order,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        recipe = self.order.recipe
        rounds = batches(recipe, self.order.epoch, self.order.world)[:, 1].tolist()
        for batch in super().__iter__():
            number, last = self.order.done, rounds[self.order.done]
            self.order.done += 1
            for turn in range(0 if recipe.clicks.trained == "every" else last, last + 1):
                yield {**batch, "turn": torch.tensor([number, turn, last])}
                batch = {}

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.order.epoch, "done": self.order.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.epoch, self.order.done = state["epoch"], state["done"]


def _start_worker(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job; only the trainer reacts
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if info := get_worker_info():
        cast(Feed, info.dataset).decoded.limit //= info.num_workers
