"""Triton kernels. Nothing imports them before there is a tensor on a GPU."""
