"""Reads SimpleClick's public checkpoints.

Such a file is ``{"state_dict": ..., "config": {"class": dotted name, "params": {name: entry}}}``, where an entry is
``{"type", "value", "specified"}``, as RITM's. The parameters of backbone, neck and head are dictionaries.
"""

from __future__ import annotations

from typing import Any

from hrseg_cli.errors import HrsegError

CLASS = "isegm.model.is_plainvit_model.PlainVitModel"
_LOSSES = "isegm.model.modeling.transformer_helper.cross_entropy_loss"
# Python objects in the head's parameters: a loss that is never called. They are read as placeholders.
OBJECTS = tuple(
    f"{_LOSSES}.{name}" for name in ("CrossEntropyLoss", "cross_entropy", "binary_cross_entropy", "mask_cross_entropy")
)

# What hrseg builds, where other values make another network. A missing parameter has the first value.
NEEDED: dict[str, tuple[Any, ...]] = {
    "backbone.in_chans": (3,),
    "backbone.mlp_ratio": (4,),
    "backbone.qkv_bias": (True,),
    "backbone.num_classes": (1000,),
    "backbone.norm_layer": (None,),
    "backbone.act_layer": (None,),
    "backbone.cls_feature_dim": (None,),
    "head.num_classes": (1,),
    "head.in_index": ([0, 1, 2, 3],),
    "head.align_corners": (False,),
    "head.upsample": ("x1",),
    "random_split": (False, None),
    "with_prev_mask": (True,),
    "use_disks": (True,),
    "use_rgb_conv": (False,),
    "with_aux_output": (False,),
    "norm_mean_std": ([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]],),
}


def read(content: dict[Any, Any]) -> tuple[str, dict[str, Any], Any] | None:
    """Catalog name, options and state dict of a model in SimpleClick's layout; None for other files.

    Raises HrsegError for a file close to this layout that cannot be used. The caller prepends the file's name.
    """
    state = content.get("state_dict", content)
    if "config" not in content or "state_dict" not in content:
        if isinstance(state, dict) and any(str(key).startswith("patch_embed_coords.") for key in state):
            raise HrsegError(
                "SimpleClick weights without their 'config'; save {'state_dict': ..., 'config': ...} as its authors do"
            )
        return None
    config = content["config"]
    if not isinstance(config, dict) or config.get("class") != CLASS:
        return None
    return "simpleclick", options(config), state


def options(config: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of :class:`~hrseg_cli.models.simpleclick.network.SimpleClick` for a public ``config``.

    Raises HrsegError; the caller prepends the file's name.
    """
    try:
        given = {name: entry["value"] for name, entry in config["params"].items()}
        parts = {part: given.pop(f"{part}_params") for part in ("backbone", "neck", "head")}
        flat = {**given, **{f"{part}.{name}": value for part, some in parts.items() for name, value in some.items()}}
        for name, values in NEEDED.items():
            if _plain(flat.get(name, values[0])) not in values:
                raise HrsegError(
                    f"its config sets '{name}' to {str(flat[name])[:60]}, which hrseg does not support; use one of the "
                    "published models"
                )
        backbone, neck, head = parts["backbone"], parts["neck"], parts["head"]
        patch = _plain(backbone["patch_size"])
        if patch != [patch[0]] * 2:
            raise HrsegError(f"its patches are not square: {patch}; use one of the published models")
        return {
            "patch": patch[0],
            "width": backbone["embed_dim"],
            "depth": backbone["depth"],
            "heads": backbone["num_heads"],
            "size": _plain(backbone["img_size"]),
            "levels": _plain(neck["out_dims"]),
            "channels": head["channels"],
            "radius": flat.get("norm_radius", 5),
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise HrsegError("its 'config' is not SimpleClick's; use the file as its authors published it") from None


def _plain(value: Any) -> Any:
    """Tuples as lists, in depth."""
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value
