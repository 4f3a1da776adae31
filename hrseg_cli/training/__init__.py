"""Training: samples, steps, judging on held-out objects, and the run folder around them."""
