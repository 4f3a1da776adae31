"""The segmentation networks of two decades as click models, one file for the variants of one idea.

Each name of the catalog is a function with ``@click_model``: it returns a backbone and a decoder, or a whole network.
Its keyword arguments are the model's options. docs/architectures.md lists the papers.
"""
