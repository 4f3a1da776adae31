"""Weights on disk: resolving names and paths, file formats, adapter files. Files are never unpickled unsafely."""
