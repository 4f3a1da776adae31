"""SegRefiner: masks refined by discrete diffusion (Wang et al., NeurIPS 2023, arXiv 2312.12425)."""
