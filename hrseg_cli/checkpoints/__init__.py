"""Weights on disk: what a name or a path means, file formats, adapters' files. Nothing is ever unpickled unsafely."""
