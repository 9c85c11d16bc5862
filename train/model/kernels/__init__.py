"""Triton kernels, each behind an operator of `train.model`, which imports them when the first CUDA tensor arrives."""
