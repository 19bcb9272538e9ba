"""Width scaling of networks under abc-parametrizations (Yang & Hu 2021, Tensor Programs IV, arXiv:2011.14522)."""
