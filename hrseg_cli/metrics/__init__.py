"""Scores of masks, and the numbers computed from them over many objects (NoC)."""
