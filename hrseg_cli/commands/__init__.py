"""The commands of ``hrseg``, one file per command."""
