"""How much a file may contain, whoever made it. Readers check these limits before they allocate or loop.

Each is far above what honest files need. Together they keep any single file below a gigabyte of memory and a few
seconds, except images, weights and the annotations of whole datasets, which honestly take more.
"""

from __future__ import annotations

from typing import NamedTuple


class TextLimits(NamedTuple):
    """bytes: of the file. entries: values of JSON or nodes of YAML (aliases count as what they stand for), or lines of
    a table. nesting: depth of lists and objects; Python itself gives up at about 1000."""

    bytes: int
    entries: int
    nesting: int = 64


SETTINGS = TextLimits(256 << 10, 20_000)  # recipes, protocols, manifests, values of --set
TEXT = TextLimits(64 << 20, 2_000_000)  # click files, tables of pairs, lists, and the records hrseg keeps
LINE = TextLimits(256 << 20, 4_000_000)  # one line of traces or masks; a mask of a gigapixel image is a line of 100 MB
DATASET = TextLimits(2 << 30, 200_000_000)  # COCO's train2017 has 0.5 GB and 60 million numbers; traces of large runs
HEADER = TextLimits(16 << 20, 1_000_000)  # of safetensors and ONNX files

DIGITS = 18  # of an integer: larger ones fit neither 64 bits nor any meaning
WEIGHTS = 4 << 30  # bytes of a file of weights; protobuf, and so ONNX, ends at 2 GB
PICKLE = 1 << 30  # bytes of a COCO+LVIS pickle; hannotation.pickle of the training split has 0.1 GB
OBJECTS = 100_000  # objects of one image
CLICKS = 10_000  # on one object

PIXELS = 300_000_000  # of an image; the largest cameras have half of that
LIGHT_PIXELS = 64_000_000  # an image file of any size may have
DENSITY = 1100  # pixels a byte beyond that: more than the most empty 8-bit PNG has
PNG_TEXT = 32 << 20  # bytes of a text or profile in a PNG
IMAGE_BYTES = 4 << 30  # of an image file
MATLAB = 128 << 20  # bytes of an unpacked MATLAB file; one of SBD has 0.3 MB
XZ_MEMORY = 256 << 20  # bytes that unpacking an .xz may take: 65 MB for those of xz -9, but a file may ask for 4 GB
ZIP_DIRECTORY = 32 << 20  # bytes of a zip archive's list of files, unless the archive is 32 times as large
TAR_HEADER = 1 << 20  # bytes of a long name or a PAX header in a tar archive, which are read as a whole
TAR_HEADERS = 16 << 20  # bytes of all such headers, unless the archive itself is larger
MESSAGE = 2000  # characters of an error message
