"""A picture set that is drawn, not downloaded: thin and intricate objects with exact anti-aliased masks.

Every sample is a small scene made of the three arguments ``(seed, index, size)`` alone: a textured background, things
of the same kind behind the object, the object with its cast shadow, at times something in front of it. Geometry lives
in units of the longer side, so the same scene can be drawn at any size. Object and background are blended linearly
with the stored coverage; lens blur and sensor noise come after that.

Points of shapes are (x, y), as OpenCV takes them; arrays are (row, col).

    parts                         what shapes are made of
    grown, made  -> kinds         the shapes, and which of them each kind has
    raster, filters               from shapes to pixels, and what is done to pixels
    surfaces, grounds             materials in the light, and what the object stands before
    scene        -> files         one picture, and a folder of them
"""

from hrseg_cli.data.procedural.files import VERSION, write
from hrseg_cli.data.procedural.kinds import KINDS
from hrseg_cli.data.procedural.scene import Layers, draw, kind, layers

__all__ = ["KINDS", "VERSION", "Layers", "draw", "kind", "layers", "write"]
