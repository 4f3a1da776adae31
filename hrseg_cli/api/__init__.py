"""The public Python API, ``import hrseg_cli``, also used by the commands. See docs/python.md."""
