"""Reads RITM's public checkpoints.

Such a file is ``{"state_dict": ..., "config": {"class": dotted name, "params": {name: entry}}}``, where an entry is
``{"type", "value", "specified"}``.
"""

from __future__ import annotations

from typing import Any

from hrseg_cli.errors import HrsegError

HRNET_CLASS = "isegm.model.is_hrnet_model.HRNetModel"

# Other families that use this format. hrseg does not read them, but can name them in its error message.
OTHER_CLASSES = {
    "is_deeplab_model": "a DeepLabV3+ click model",
    "is_plainvit_model": "a variant of SimpleClick",
    "is_segformer_model": "a FocalClick SegFormer model",
    "is_strong_baseline": "a FocalClick model",
    "is_cdnet_model": "a CDNet model",
}

# RITM's defaults for parameters missing from the file.
DEFAULTS: dict[str, Any] = {
    "width": 48,
    "ocr_width": 256,
    "small": False,
    "with_aux_output": False,
    "use_leaky_relu": False,
    "use_rgb_conv": True,
    "use_disks": False,
    "norm_radius": 260,
    "with_prev_mask": False,
    "binary_prev_mask": False,
    "conv_extend": False,
    "norm_mean_std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

# Parameters of training, or of the demo's click maps, which round clicks to pixels. They do not affect evaluation.
WITHOUT_EFFECT = {"backbone_lr_mult", "norm_layer", "cpu_dist_maps"}


def read(content: dict[Any, Any]) -> tuple[str, dict[str, Any], Any] | None:
    """Catalog name, options and state dict of a model in RITM's layout; None for other files.

    Raises HrsegError for a file close to this layout that cannot be used. The caller prepends the file's name.
    """
    if "state_dict" in content and "config" in content:
        return "hrnet_ocr", options(content["config"]), content["state_dict"]
    state = content.get("state_dict", content.get("model", content))
    keys = [str(key) for key in state] if isinstance(state, dict) else []
    joined = " ".join(keys)
    if any(key.startswith("feature_extractor.") for key in keys) and "lora_" not in joined:
        raise HrsegError(
            "click network weights without their 'config'; save {'state_dict': ..., 'config': ...} as RITM does"
        )
    if "incre_modules" in joined or ("stage4." in joined and "conv1.weight" in joined):
        raise HrsegError(
            "an ImageNet HRNet backbone, not a click model; use it to initialise a training (model.backbone)"
        )
    return None


def options(config: Any) -> dict[str, Any]:
    """Keyword arguments of :class:`~hrseg_cli.models.hrnet.network.ClickHRNet` for a RITM ``config``.

    Raises HrsegError; the caller prepends the file's name.
    """
    try:
        name, params = str(config["class"]), dict(config["params"])
        values = {key: (entry["value"], bool(entry.get("specified", True))) for key, entry in params.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise HrsegError("its 'config' is not RITM's; use the file as its authors published it") from None
    if name != HRNET_CLASS:
        known = next((text for part, text in OTHER_CLASSES.items() if part in name), f"a model of class {name}")
        raise HrsegError(f"{known}, which hrseg cannot read; give one of RITM's HRNet models (h18s, h18, h32)")
    chosen = dict(DEFAULTS)
    for key, (value, specified) in values.items():
        if key in chosen:
            chosen[key] = value
        elif key == "clicks_groups":
            if value is not None:
                raise HrsegError("uses click groups, which hrseg does not support; use a model without them")
        elif specified and key not in WITHOUT_EFFECT:
            raise HrsegError(
                f"its config sets the unknown option '{key}', probably of a fork of RITM; use RITM's own checkpoint"
            )
    return chosen
