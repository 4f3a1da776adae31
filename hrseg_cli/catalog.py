"""All names that a user can type, mapped to ``module:object``, which is imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from hrseg_cli.errors import UnknownName

DEFAULT_MODEL = "clicknet_m"  # of every command and of the Python API; comes with weights

MODELS = {
    "clicknet_s": "hrseg_cli.models.clicknet:clicknet_s",
    "clicknet_m": "hrseg_cli.models.clicknet:clicknet_m",
    "clicknet": "hrseg_cli.models.clicknet:ClickNet",
    "h18s": "hrseg_cli.models.hrnet:h18s",
    "h18": "hrseg_cli.models.hrnet:h18",
    "h32": "hrseg_cli.models.hrnet:h32",
    "h18_baseline": "hrseg_cli.models.hrnet:h18_baseline",
    "hrnet_ocr": "hrseg_cli.models.hrnet:ClickHRNet",
    "simpleclick_xtiny": "hrseg_cli.models.simpleclick:xtiny",
    "simpleclick_b": "hrseg_cli.models.simpleclick:base",
    "simpleclick_l": "hrseg_cli.models.simpleclick:large",
    "simpleclick_h": "hrseg_cli.models.simpleclick:huge",
    "simpleclick": "hrseg_cli.models.simpleclick.network:SimpleClick",
    "grabcut": "hrseg_cli.models.grabcut:GrabCut",
    "kmeans": "hrseg_cli.models.classical:KMeans",
    "mean_shift": "hrseg_cli.models.classical:MeanShift",
    "slic": "hrseg_cli.models.classical:Slic",
    "felzenszwalb": "hrseg_cli.models.classical:Felzenszwalb",
    "random_walker": "hrseg_cli.models.classical:RandomWalker",
    "watershed": "hrseg_cli.models.classical:Watershed",
    "fcn_32s": "hrseg_cli.models.zoo.fcn:fcn_32s",
    "fcn_16s": "hrseg_cli.models.zoo.fcn:fcn_16s",
    "fcn_8s": "hrseg_cli.models.zoo.fcn:fcn_8s",
    "deeplab_v1": "hrseg_cli.models.zoo.deeplab:deeplab_v1",
    "deeplab_v2": "hrseg_cli.models.zoo.deeplab:deeplab_v2",
    "deeplab_v3": "hrseg_cli.models.zoo.deeplab:deeplab_v3",
    "deeplab_v3_cascade": "hrseg_cli.models.zoo.deeplab:deeplab_v3_cascade",
    "deeplab_v3plus": "hrseg_cli.models.zoo.deeplab:deeplab_v3plus",
    "semantic_fpn": "hrseg_cli.models.zoo.fpn:semantic_fpn",
    "upsnet": "hrseg_cli.models.zoo.fpn:upsnet",
    "deconvnet": "hrseg_cli.models.zoo.unpooling:deconvnet",
    "segnet": "hrseg_cli.models.zoo.unpooling:segnet",
    "unet": "hrseg_cli.models.zoo.unet:unet",
    "ternausnet": "hrseg_cli.models.zoo.unet:ternausnet",
    "unet_plusplus": "hrseg_cli.models.zoo.unet:unet_plusplus",
    "linknet": "hrseg_cli.models.zoo.refinement:linknet",
    "sharpmask": "hrseg_cli.models.zoo.refinement:sharpmask",
    "refinenet": "hrseg_cli.models.zoo.refinement:refinenet",
    "fc_densenet56": "hrseg_cli.models.zoo.tiramisu:fc_densenet56",
    "fc_densenet103": "hrseg_cli.models.zoo.tiramisu:fc_densenet103",
    "gridnet": "hrseg_cli.models.zoo.gridnet:gridnet",
    "frrn_a": "hrseg_cli.models.zoo.gridnet:frrn_a",
    "vnet": "hrseg_cli.models.zoo.vnet:vnet",
    "pixel_classifier": "hrseg_cli.models.zoo.sliding:pixel_classifier",
    "pspnet": "hrseg_cli.models.zoo.context:pspnet",
    "danet": "hrseg_cli.models.zoo.context:danet",
    "fastfcn": "hrseg_cli.models.zoo.context:fastfcn",
    "lraspp": "hrseg_cli.models.zoo.context:lraspp",
    "hrnet_v1": "hrseg_cli.models.zoo.hrnet_heads:hrnet_v1",
    "hrnet_v2": "hrseg_cli.models.zoo.hrnet_heads:hrnet_v2",
    "hrnet_v2p": "hrseg_cli.models.zoo.hrnet_heads:hrnet_v2p",
    "attention_to_scale": "hrseg_cli.models.zoo.multiscale:attention_to_scale",
    "hierarchical_attention": "hrseg_cli.models.zoo.multiscale:hierarchical_attention",
}

PREFIXES = {  # prefix of a model's name -> what opens the rest of it, as in sam:FOLDER
    "sam": "hrseg_cli.models.sam:open_sam",
    "python": "hrseg_cli.models.external:open_python",
    "http": "hrseg_cli.models.external:open_http",
}

BACKBONES = {
    "efficientnet_lite0": "hrseg_cli.models.clicknet.imagenet:lite0",
    "efficientnet_lite1": "hrseg_cli.models.clicknet.imagenet:lite1",
    "efficientnet_lite2": "hrseg_cli.models.clicknet.imagenet:lite2",
}

CHECKPOINTS = {  # readers of public layouts, tried in this order
    "simpleclick": "hrseg_cli.models.simpleclick.checkpoints:read",
    "ritm": "hrseg_cli.models.hrnet.checkpoints:read",
}

LAYOUTS = {  # in the order in which an unknown folder is compared with them
    "grabcut": "hrseg_cli.data.folders:list_grabcut",
    "davis": "hrseg_cli.data.folders:list_davis",
    "folder": "hrseg_cli.data.folders:list_folder",
    "berkeley": "hrseg_cli.data.folders:list_berkeley",
    "sbd": "hrseg_cli.data.listed:list_sbd",
    "pascalvoc": "hrseg_cli.data.listed:list_pascalvoc",
    "coco_lvis": "hrseg_cli.data.listed:list_coco_lvis",
    "davis585": "hrseg_cli.data.folders:list_davis585",
    "pairs": "hrseg_cli.data.folders:list_pairs",
    "coco": "hrseg_cli.data.coco:list_coco",
    "labelme": "hrseg_cli.data.labelme:list_labelme",
    "procedural": "hrseg_cli.data.listed:list_procedural",
    "samples": "hrseg_cli.data.listed:list_samples",
}

METRICS = {
    "iou": "hrseg_cli.metrics.masks:IoU",
    "biou": "hrseg_cli.metrics.masks:BoundaryIoU",
    "mba": "hrseg_cli.metrics.masks:MeanBoundaryAccuracy",
    "pa": "hrseg_cli.metrics.masks:PixelAccuracy",
    "mpa": "hrseg_cli.metrics.masks:MeanPixelAccuracy",
}

ADAPTERS = {
    "lora": "hrseg_cli.adapters.lora:attach_lora",
    "conv": "hrseg_cli.adapters.resample:Resampled",
    "pointrend": "hrseg_cli.adapters.pointrend:PointRendered",
    "toast": "hrseg_cli.adapters.toast:toast",
    "toast_lite": "hrseg_cli.adapters.toast:toast_lite",
    "full": "hrseg_cli.adapters.controls:full",
    "head": "hrseg_cli.adapters.controls:head",
    "bn": "hrseg_cli.adapters.controls:bn",
    "bitfit": "hrseg_cli.adapters.controls:bitfit",
}

REFINERS = {
    "guided_filter": "hrseg_cli.refiners.baselines:guided_filter",
    "dense_crf": "hrseg_cli.refiners.baselines:dense_crf",
    "graph_cut": "hrseg_cli.refiners.baselines:graph_cut",
    "zoom_in": "hrseg_cli.refiners.zoom:zoom_in",
    "segrefiner": "hrseg_cli.refiners.segrefiner.refiner:SegRefiner",
    "cascadepsp": "hrseg_cli.refiners.cascadepsp.refiner:CascadePSP",
}

ELSEWHERE = {  # kind -> name that is none of it -> where hrseg has it
    "refiner": {
        "focuscut": "FocusCut needs the masks before and after each click: use `protocol` fast_focus, for existing "
        "masks 'hrseg predict IMAGES --init-mask MASKS --clicks FILE --protocol fast_focus'.",
        "pointrend": "PointRend is a head of a click model: train it with 'hrseg adapt --adapter pointrend', then use "
        "refiner zoom_in with `model` BASE+ADAPTER.",
    }
}

TRAINED_REFINERS = {  # networks of refiners, for recipes with `task: refine`
    "segrefiner": "hrseg_cli.refiners.segrefiner.training:TrainedDenoiser",
    "cascadepsp": "hrseg_cli.refiners.cascadepsp.training:TrainedCascade",
}

LOSSES = {
    "nfl": "hrseg_cli.losses:normalized_focal",
    "focal": "hrseg_cli.losses:focal",
    "bce": "hrseg_cli.losses:bce",
    "boundary_bce": "hrseg_cli.losses:boundary_bce",
    "weighted_bce": "hrseg_cli.losses:weighted_bce",
    "dice": "hrseg_cli.losses:dice",
    "soft_iou": "hrseg_cli.losses:soft_iou",
    "lovasz": "hrseg_cli.losses:lovasz_hinge",
    "l1_l2": "hrseg_cli.losses:l1_l2",
    "lovasz_softmax": "hrseg_cli.losses:lovasz_softmax",
    "boundary": "hrseg_cli.losses:boundary",
    "feature_mse": "hrseg_cli.losses:feature_mse",
    "texture": "hrseg_cli.refiners.segrefiner.diffusion:texture_loss",
}

FORMATS = {
    "md": "hrseg_cli.report.write:markdown",
    "tex": "hrseg_cli.report.write:latex",
    "csv": "hrseg_cli.report.write:csv",
    "json": "hrseg_cli.report.write:json_lines",
}

TABLES = {
    "model": MODELS,
    "prefix": PREFIXES,
    "backbone": BACKBONES,
    "checkpoint layout": CHECKPOINTS,
    "layout": LAYOUTS,
    "metric": METRICS,
    "loss": LOSSES,
    "adapter": ADAPTERS,
    "refiner": REFINERS,
    "trained refiner": TRAINED_REFINERS,
    "format": FORMATS,
}


def check(kind: str, name: str) -> None:
    """Raises UnknownName for a name that is not in a table of :data:`TABLES`, without importing anything."""
    if name not in TABLES[kind]:
        raise UnknownName(kind, name, TABLES[kind], ELSEWHERE.get(kind, {}).get(name.lower(), ""))


def resolve(kind: str, name: str) -> Any:
    """The object of this name in a table of :data:`TABLES`. Raises UnknownName, which suggests the nearest name."""
    check(kind, name)
    module, _, attribute = TABLES[kind][name].partition(":")
    return getattr(importlib.import_module(module), attribute)
