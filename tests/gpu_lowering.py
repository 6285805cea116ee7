"""Kernels as a GPU's programs, made where there is none."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh


def kernels(function: Callable, *arguments: Any) -> int:
    """How many kernels a program for a GPU calls; whatever a GPU's lowering refuses is raised.

    The program ends before Triton compiles it, which needs the GPU. arguments: arrays, or what
    `jax.ShapeDtypeStruct` says of them.
    """
    device = AbstractDevice("NVIDIA H200", 132, "gpu")
    mesh = AbstractMesh((1,), ("all",), axis_types=(AxisType.Auto,), abstract_device=device)
    with use_abstract_mesh(mesh):
        traced = jax.jit(function).trace(*arguments)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    return program.count("@__gpu$xla.gpu.triton")
