"""Datasets: finding, downloading, reading and preparing images and masks."""
