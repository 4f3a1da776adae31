"""CascadePSP: masks refined from coarse to fine (Cheng et al., CVPR 2020, arXiv 2005.02551)."""
