"""The procedural dataset: thin and intricate objects, drawn on demand, with exact anti-aliased masks.

Every sample is a small scene that depends only on ``(seed, index, size)``: a textured background, distractors of the
same kind, the object with its cast shadow, and sometimes an occluder. Geometry is in units of the longer side, so the
same scene can be drawn at any size. Object and background are blended linearly with the stored coverage; lens blur and
sensor noise follow.

Points of shapes are (x, y), as in OpenCV; arrays are (row, col).

    parts                         building blocks of shapes
    grown, made  -> kinds         natural and man-made shapes, and the shapes of each kind
    raster, filters               rasterising shapes, and filtering pixels
    surfaces, grounds             lit materials, and backgrounds
    scene        -> files         one picture, and a folder of pictures
"""

from hrseg_cli.data.procedural.files import VERSION, write
from hrseg_cli.data.procedural.kinds import KINDS
from hrseg_cli.data.procedural.scene import Layers, draw, kind, layers, numbers

__all__ = ["KINDS", "VERSION", "Layers", "draw", "kind", "layers", "numbers", "write"]
