"""Click models: their interface in ``base``, and one folder or file per family."""
