"""Graph passes: autodiff, optimizers, decomposition, quantisation and fusion, each a frozen object."""
