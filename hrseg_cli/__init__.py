"""hrseg: high-resolution interactive image segmentation, counted in clicks."""

__version__ = "0.1.0"
