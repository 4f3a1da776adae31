"""The table of kinds and their shapes."""

from __future__ import annotations

from collections.abc import Callable

from numpy.random import Generator

from hrseg_cli.data.procedural.grown import branch, coral, feather, fern, fur, leaf, thistle, tuft, web
from hrseg_cli.data.procedural.made import cable, coil, fence, gear, glyph, harness, mesh, wheel
from hrseg_cli.data.procedural.parts import ShapePart

SHAPES: dict[str, tuple[Callable[[Generator], list[ShapePart]], ...]] = {
    "branch": (branch,),
    "wire": (cable, harness, coil),
    "lattice": (fence, mesh, web),
    "gear": (gear,),
    "leaf": (leaf, leaf, fern),
    "strands": (tuft, thistle, fur),
    "glyph": (glyph,),
    "wheel": (wheel,),
    "feather": (feather,),
    "coral": (coral,),
}
KINDS = tuple(SHAPES)
UPRIGHT = ("branch", "lattice", "coral", "glyph")


def shape_of(rng: Generator, name: str) -> list[ShapePart]:
    """A new random object of the kind ``name``, in units of its own."""
    styles = SHAPES[name]
    return styles[rng.integers(len(styles))](rng)
