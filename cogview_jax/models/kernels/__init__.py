"""Parts of the transformer that are written as kernels for GPUs."""
