"""Average precision of instance masks as in COCO, by mask IoU and by Boundary IoU."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as pycoco

from hrseg_cli.metrics.masks import band_width, boundary

NAMES = ("ap", "ap50", "ap75")


class Instance(NamedTuple):
    """A mask of an image: an object of the ground truth, or a result with its score.

    runs: COCO's compressed run lengths. crowd: a region of the ground truth in which results are neither right nor
    wrong.
    """

    image: Hashable
    category: Hashable
    runs: dict[str, Any]
    score: float = 1.0
    crowd: bool = False


def average_precision(
    truths: Sequence[Instance],
    results: Sequence[Instance],
    images: Iterable[Hashable],
    band: dict[str, float] | None = None,
) -> dict[str, float]:
    """COCO's AP, AP50 and AP75 over all areas and at most 100 results per image, between 0 and 1; NaN without any
    object of the ground truth.

    images: those that count, also if nothing lies on them. band: ``ratio`` or ``width`` of Boundary IoU (see
    :func:`boundary_iou`), for Boundary AP (Cheng et al., CVPR 2021): the smaller of mask IoU and Boundary IoU then
    decides what matches; crowds keep the mask IoU. None: mask AP.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools uses NumPy 1's array protocol
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        class BoundaryEval(COCOeval):  # type: ignore[misc]
            """Matches by the smaller of both overlaps."""

            def computeIoU(self, image: int, category: int) -> Any:
                ious = super().computeIoU(image, category)
                objects, found = self._gts[image, category], self._dts[image, category]
                if band is None or len(ious) == 0:
                    return ious
                order = np.argsort([-one["score"] for one in found], kind="mergesort")[: self.params.maxDets[-1]]
                bands = [[_band(one, band) for one in some] for some in ([found[k] for k in order], objects)]
                crowds = np.array([one["iscrowd"] for one in objects], bool)
                edges = pycoco.iou(*bands, [0] * len(objects))
                return np.where(crowds, ious, np.minimum(ious, edges))

        numbers = {image: number for number, image in enumerate(images, 1)}
        known = dict.fromkeys(one.category for one in truths)
        categories = {category: number for number, category in enumerate(known, 1)}
        both = []
        for instances in (truths, results):
            part = COCO()
            part.dataset = {
                # Sizes are looked up, but only those in the run lengths are used.
                "images": [{"id": number, "height": 0, "width": 0} for number in numbers.values()],
                "categories": [{"id": number} for number in categories.values()],
                "annotations": [
                    {
                        "id": number,
                        "image_id": numbers[one.image],
                        "category_id": categories[one.category],
                        "segmentation": one.runs,
                        "area": 1,  # of any size
                        "iscrowd": int(one.crowd),
                        "score": one.score,
                    }
                    for number, one in enumerate(instances, 1)
                    if one.image in numbers and one.category in categories
                ],
            }
            part.createIndex()
            both.append(part)
        evaluation = BoundaryEval(*both, "segm")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, categories; -1 without objects
    found = {name: part[part > -1] for name, part in zip(NAMES, (precision, precision[0], precision[5]), strict=True)}
    return {name: float(part.mean()) if part.size else float("nan") for name, part in found.items()}


def _band(instance: dict[str, Any], band: dict[str, float]) -> dict[str, Any]:
    """Run lengths of the band along the outline."""
    mask = pycoco.decode(instance["segmentation"])
    height, columns = mask.shape
    width = int(band["width"]) if "width" in band else band_width(height, columns, band["ratio"])
    runs: dict[str, Any] = pycoco.encode(np.asfortranarray(boundary(mask, width)))
    return runs
