"""Classical segmentation as click models without weights: clusters, regions of a graph, random walks, watersheds.

They are baselines. Some need scikit-image: ``pip install 'hrseg[classical]'``.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import Features, InteractiveModel
from hrseg_cli.models.parts.click_pixels import nearest_click, pixels_under, shrunk

CERTAIN = 4.0  # logit of object pixels; negated, of background
LARGEST = 4096  # of max_side and counts


class Classical(InteractiveModel):
    """What they share: larger inputs are downsampled to a longer side of ``max_side`` pixels, the mask is resized
    back."""

    weightless = True
    mirror = False

    def __init__(self, name: str, max_side: int, **options: float) -> None:
        super().__init__()
        self.name, self.config = name, {"max_side": max_side, **options}
        for key, value in self.config.items():
            counts = isinstance(value, int) and 1 <= value <= LARGEST
            if not (counts if key in ("max_side", "clusters", "segments", "smallest") else 0 < value < math.inf):
                raise ValueError(f"{key}={value!r}: must be a number above 0, and a count an integer up to {LARGEST}")
        self.max_side = max_side

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        return self.decode(self.encode(image[:, :3]), image[:, 3:], points)

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        masks = []
        arrays = (features[0].cpu().numpy(), previous[:, 0].cpu().numpy(), points.cpu().numpy())
        for feature, before, clicks in zip(*arrays, strict=True):
            size = height, width = before.shape
            scale = min(1.0, self.max_side / max(size))
            old = shrunk(before > 0.5, scale)
            clicked = pixels_under(clicks[:, :2], size, scale, old.shape)
            mask = self.answer(feature, old, clicked).astype(np.uint8) * 255
            masks.append(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) > 127)
        found = torch.from_numpy(np.stack(masks)).unsqueeze(1)
        return {"logits": torch.where(found, CERTAIN, -CERTAIN).to(previous.device)}

    def encode(self, image: Tensor) -> Features:
        pictures = (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        scale = min(1.0, self.max_side / max(image.shape[2:]))
        return (torch.from_numpy(np.stack([self.seen(shrunk(one, scale)) for one in pictures])),)

    def seen(self, image: np.ndarray) -> np.ndarray:
        """What the answers need of an image, uint8 (h, w, 3)."""
        return image

    def answer(self, seen: np.ndarray, previous: np.ndarray, clicked: np.ndarray) -> np.ndarray:
        """The mask, bool (h, w). previous: bool (h, w). clicked: int (2N, 2), pixels, positive first, -1 for unused."""
        raise NotImplementedError


class Regions(Classical):
    """Models whose regions follow from the image alone: clicked regions are the object or the background.

    The pixels of a region with clicks of both kinds go to the nearest click. A region without clicks stays as it was.
    """

    has_encoder = True

    def answer(self, seen: np.ndarray, previous: np.ndarray, clicked: np.ndarray) -> np.ndarray:
        half, count = len(clicked) // 2, int(seen.max()) + 1
        share = np.bincount(seen.ravel(), previous.ravel(), count) / np.bincount(seen.ravel(), minlength=count).clip(1)
        wanted, unwanted = (np.zeros(count, bool) for _ in range(2))
        for some, kind in ((clicked[:half], wanted), (clicked[half:], unwanted)):
            rows, cols = some[some[:, 0] >= 0].T
            kind[seen[rows, cols]] = True
        mask = np.where(wanted | unwanted, wanted, share > 0.5)[seen]
        if (wanted & unwanted).any():
            nearer = nearest_click(clicked[:half], seen.shape) <= nearest_click(clicked[half:], seen.shape)
            mask = np.where((wanted & unwanted)[seen], nearer, mask)
        return np.asarray(mask)


class KMeans(Regions):
    """k-means in colour and position: the clicked clusters are the object (Lloyd 1982).

    clusters: number of clusters. compactness: weight of the position; 1 makes half an image's side as far as a third of
    the range of lightness.
    """

    def __init__(self, *, max_side: int = 160, clusters: int = 24, compactness: float = 1.0) -> None:
        super().__init__("kmeans", max_side, clusters=clusters, compactness=compactness)
        self.clusters, self.compactness = clusters, compactness

    def seen(self, image: np.ndarray) -> np.ndarray:
        vq: Any = importlib.import_module("scipy.cluster.vq")
        rows, cols = np.indices(image.shape[:2]) * (60 * self.compactness / max(image.shape[:2]))
        points = np.concatenate([lab(image), rows[..., None], cols[..., None]], 2).reshape(-1, 5).astype(np.float64)
        number = min(self.clusters, len(np.unique(points, axis=0)))
        _, labels = vq.kmeans2(points, number, iter=20, minit="++", rng=np.random.default_rng(0))
        return np.asarray(labels.reshape(image.shape[:2]).astype(np.int32))


class MeanShift(Regions):
    """Mean shift in colour and position: connected pixels with close modes are a region (Comaniciu and Meer 2002).

    space, colour: the bandwidths, in pixels and in grey levels.
    """

    def __init__(self, *, max_side: int = 320, space: float = 8.0, colour: float = 16.0) -> None:
        super().__init__("mean_shift", max_side, space=space, colour=colour)
        self.space, self.colour = min(space, 64.0), min(colour, 255.0)

    def seen(self, image: np.ndarray) -> np.ndarray:
        sparse: Any = importlib.import_module("scipy.sparse")
        graphs: Any = importlib.import_module("scipy.sparse.csgraph")
        shifted = cv2.pyrMeanShiftFiltering(np.ascontiguousarray(image), self.space, self.colour, maxLevel=0)
        colours, number = shifted.astype(np.int32), np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])
        across = np.abs(np.diff(colours, axis=1)).max(2) <= self.colour / 2
        down = np.abs(np.diff(colours, axis=0)).max(2) <= self.colour / 2
        one = np.concatenate([number[:, :-1][across], number[:-1][down]])
        two = np.concatenate([number[:, 1:][across], number[1:][down]])
        graph = sparse.coo_matrix((np.ones(len(one), np.int8), (one, two)), shape=(number.size, number.size))
        return np.asarray(graphs.connected_components(graph, directed=False)[1].reshape(number.shape).astype(np.int32))


class Slic(Regions):
    """SLIC superpixels: the clicked ones are the object (Achanta et al. 2012).

    segments: about so many. compactness: weight of the position against colour.
    """

    def __init__(self, *, max_side: int = 320, segments: int = 150, compactness: float = 10.0) -> None:
        super().__init__("slic", max_side, segments=segments, compactness=compactness)
        self.segments, self.compactness = segments, compactness

    def seen(self, image: np.ndarray) -> np.ndarray:
        found = segmentation(self.name).slic(image, self.segments, self.compactness, start_label=0, channel_axis=-1)
        return np.asarray(found.astype(np.int32))


class Felzenszwalb(Regions):
    """Felzenszwalb and Huttenlocher's graph-based regions: the clicked ones are the object (IJCV 2004).

    scale: of the regions; larger numbers make larger ones. sigma: of the smoothing before, in pixels. smallest: number
    of pixels of a region, at least.
    """

    def __init__(self, *, max_side: int = 480, scale: float = 200.0, sigma: float = 0.8, smallest: int = 50) -> None:
        super().__init__("felzenszwalb", max_side, scale=scale, sigma=sigma, smallest=smallest)
        self.scale, self.sigma, self.smallest = scale, sigma, smallest

    def seen(self, image: np.ndarray) -> np.ndarray:
        tool = segmentation(self.name)
        found = tool.felzenszwalb(image, self.scale, self.sigma, self.smallest, channel_axis=-1)
        return np.asarray(found.astype(np.int32))


class Seeded(Classical):
    """Models that grow from seeds: disks around the clicks, and the border of the image as background, except near a
    positive click and where the previous mask reaches it."""

    def seeds(self, previous: np.ndarray, clicked: np.ndarray) -> np.ndarray:
        """int32 (h, w): 1 object, 2 background, 0 unknown."""
        half, radius = len(clicked) // 2, max(1.5, 0.01 * min(previous.shape))
        to_object, to_background = (nearest_click(some, previous.shape) for some in (clicked[:half], clicked[half:]))
        seeds = np.zeros(previous.shape, np.int32)
        border = np.ones(previous.shape, bool)
        border[1:-1, 1:-1] = False
        seeds[border & ~previous & (to_object > 0.2 * min(previous.shape))] = 2
        seeds[to_background <= radius] = 2
        seeds[(to_object <= radius) & (to_object <= to_background)] = 1
        return seeds

    def answer(self, seen: np.ndarray, previous: np.ndarray, clicked: np.ndarray) -> np.ndarray:
        seeds = self.seeds(previous, clicked)
        if not ((seeds == 1).any() and (seeds == 2).any()):  # nothing to divide
            return np.asarray((seeds == 1) | previous)
        return self.grown(seen, seeds)

    def grown(self, seen: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class RandomWalker(Seeded):
    """Random walker: a pixel is object if a walk from it reaches a positive seed first, most probably (Grady 2006).

    beta: how much an edge in the image hinders the walk.
    """

    def __init__(self, *, max_side: int = 240, beta: float = 130.0) -> None:
        super().__init__("random_walker", max_side, beta=beta)
        self.beta = beta

    def grown(self, seen: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        tool = segmentation(self.name)
        found = tool.random_walker(seen / 255.0, seeds, self.beta, mode="bf", channel_axis=-1)
        return np.asarray(found == 1)


class Watershed(Seeded):
    """Watershed of the gradient: object and background flood it from the seeds (Meyer 1994)."""

    def __init__(self, *, max_side: int = 480) -> None:
        super().__init__("watershed", max_side)

    def grown(self, seen: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        smooth = cv2.GaussianBlur(lab(seen), (0, 0), 1)
        slopes = [cv2.Sobel(smooth, cv2.CV_32F, *order) for order in ((1, 0), (0, 1))]
        steepest = np.sqrt(np.square(slopes[0]) + np.square(slopes[1])).max(2)
        return np.asarray(segmentation(self.name).watershed(steepest, seeds) == 1)


def lab(image: np.ndarray) -> np.ndarray:
    """float32 (h, w, 3), CIELAB: L in [0, 100], a and b about as far apart as colours look."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def segmentation(name: str) -> Any:
    """scikit-image's functions. Raises HrsegError with the command that installs it."""
    try:
        return importlib.import_module("skimage.segmentation")
    except ImportError:
        raise HrsegError(f"`model` {name}: needs scikit-image; run pip install 'hrseg[classical]'") from None
