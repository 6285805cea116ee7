"""Attention in blocks for every platform, and what is written as kernels for GPUs and TPUs."""
