"""Parts of the transformer as kernels for GPUs."""
