"""Options that make the networks of ``hrseg_cli.models.zoo`` small: their layers, few channels."""

from __future__ import annotations

from typing import Any

WIDTH = {"width": 8}
BRANCHES = {"width": 8, "branch": 8}

SMALL_ZOO: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("fcn_32s", "fcn_16s", "fcn_8s"), WIDTH),
    **dict.fromkeys(("deeplab_v1", "deeplab_v2", "deeplab_v3", "deeplab_v3_cascade", "deeplab_v3plus"), WIDTH),
    **dict.fromkeys(("semantic_fpn", "upsnet", "hrnet_v2p"), BRANCHES),
    **dict.fromkeys(("pspnet", "danet", "fastfcn", "lraspp", "sharpmask", "refinenet"), WIDTH),
    **dict.fromkeys(("attention_to_scale", "hierarchical_attention"), WIDTH),
    "deconvnet": {"backbone": "vgg11", "width": 8},
    "segnet": {"backbone": "vgg11"},
    "unet": {"width": 4},
    "ternausnet": {"width": 4},
    "unet_plusplus": {"backbone": "plain", "width": 4},
    "linknet": {},
    "fc_densenet56": {"width": 4, "growth": 2},
    "fc_densenet103": {"width": 4, "growth": 2},
    "gridnet": {"widths": [4, 4, 8], "columns": 4},
    "frrn_a": {"width": 4},
    "vnet": {"width": 2},
    "pixel_classifier": {"width": 4, "hidden": 8},
    "hrnet_v1": {},
    "hrnet_v2": {},
}
