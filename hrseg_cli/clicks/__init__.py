"""Clicks: the simulated annotator, training clicks, and files of clicks."""
