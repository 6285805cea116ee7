"""Peak rates and memory of the hardware, against which efficiency is measured.

Model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B) is

    MFU = model FLOPs per second / (devices x peak FLOPs per second of one device)

where model FLOPs are those of the mathematics (6 for each parameter and token, plus attention),
without those that rematerialisation adds. If the device is known, its peak is the figure of its
maker (dense, without sparsity). For other devices, such as CPUs, the peak is the rate of a large
matrix product. Other work may take the cores while that is measured, so a program may reach more;
the peak is then the rate of that program. For decoding, the bound is the number of bytes that a
token has to read, divided by `measured_bandwidth`.
"""

import contextlib
import ctypes
import functools
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.random_key import random_key
from cogview_jax.runtime.workers import cores


@dataclass(frozen=True)
class Accelerator:
    """Peaks of one jax device, in 1e12 FLOPs a second, and its memory.

    `float32` is what jax's default matmul precision uses: TF32 since Ampere, one bfloat16 pass on
    TPUs. `memory` is in 1e9 bytes; the runtime keeps a few percent of it to itself. A jax device of
    a TPU v3 is one of the chip's two cores; since v4 it is the chip.
    """

    kind: str
    bfloat16: float
    float16: float
    float32: float
    memory: float

    @property
    def name(self) -> str:
        """Returns the name that users give."""
        return self.kind.removesuffix("?")


# `kind` is searched for as whole words in `device.device_kind`, and the first match counts.
ACCELERATORS = (
    Accelerator("V100-SXM2-32GB", 15.7, 125, 15.7, 34.4),
    Accelerator("V100", 15.7, 125, 15.7, 17.2),  # It has no bfloat16 tensor cores.
    Accelerator("A100-SXM4-80GB", 312, 312, 156, 85.9),
    Accelerator("A100 80GB PCIe", 312, 312, 156, 85.9),
    Accelerator("A100", 312, 312, 156, 42.9),
    Accelerator("H100 PCIe", 756, 756, 378, 85.9),
    Accelerator("H100 NVL", 835, 835, 417, 100.9),
    Accelerator("H100", 989, 989, 495, 85.9),
    Accelerator("H200", 989, 989, 495, 151.0),
    Accelerator("B200", 2250, 2250, 1125, 193.0),
    Accelerator("TPU v3", 61.5, 61.5, 61.5, 17.2),
    Accelerator("TPU v4", 275, 275, 275, 34.4),
    Accelerator("TPU v5 lite", 197, 197, 197, 17.2),
    Accelerator("TPU v5e", 197, 197, 197, 17.2),
    Accelerator("TPU v5p?", 459, 459, 459, 102.0),
    Accelerator("TPU v6 lite", 918, 918, 918, 34.4),
    Accelerator("TPU v6e", 918, 918, 918, 34.4),
)


def accelerator(name: str) -> Accelerator:
    """Returns the row for a name such as "H100", "v5p" or "V100-SXM2-32GB", in any case.

    Raises:
        InputError: there is no such row; the message lists the choices.
    """
    wanted = name.casefold().removeprefix("tpu ")
    for row in ACCELERATORS:
        if wanted == row.name.casefold().removeprefix("tpu "):
            return row
    choices = ", ".join(row.name for row in ACCELERATORS)
    raise InputError(f"accelerator {name!r} is unknown; choose from {choices}")


def known(device_kind: str) -> Accelerator | None:
    """Returns the row for a `device.device_kind`, or None if there is none."""
    for row in ACCELERATORS:
        if re.search(rf"\b{row.kind}\b", device_kind):
            return row
    return None


def peak_flops(device: jax.Device, dtype: DTypeLike) -> float:
    """Returns the peak FLOPs per second of one device for matrix products in `dtype`.

    A device that is not in the table is measured once, which takes a moment on a CPU. All CPU
    devices of jax share one machine, so each has an equal part of its peak. The peak of a CPU is
    that of float32 for all types, because XLA may compute the others in float32.
    """
    row = known(device.device_kind)
    if row is not None:
        return getattr(row, jnp.dtype(dtype).name) * 1e12
    if device.platform == "cpu":
        return measured_matmul_peak(jnp.dtype("float32")) / _sharers(device)
    # The products are so large and so many that the time to start them does not matter.
    return measured_matmul_peak(jnp.dtype(dtype), 8192, 10)


def machine() -> dict[str, Any]:
    """Returns, as JSON values, what the last bits of the numbers of a run depend on.

    On a CPU this includes the number of cores that this process may use, because XLA splits long
    sums by it.
    """
    device = jax.devices()[0]
    found = {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }
    if device.platform == "cpu":
        found["cores"] = cores()
    return found


def device_memory() -> dict[str, float]:
    """Returns the peak bytes in use on the first device as `device_memory`; empty on CPUs."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device_memory": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}


def free_memory(device: jax.Device) -> int | None:
    """Returns the bytes that programs may still take on one device; None if they are unknown.

    For a GPU or TPU the allocator counts them. The devices of a CPU share those of the machine.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # The system is not Linux.
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(available[0]) * 1024 // _sharers(device) if available else None


@functools.cache
def measured_matmul_peak(dtype: DTypeLike = jnp.float32, n: int = 1024, chained: int = 1) -> float:
    """Returns the FLOPs per second of the fastest of several jitted [n, n] @ [n, n].

    They run on the default device. The numbers are random, because a GPU is faster on zeros, which
    need less power.

    Args:
        dtype: the type of the matrices.
        n: rows and columns.
        chained: how many products are timed together. With one, an accelerator would mostly be
            waiting for the next to start.
    """
    # The magnitude of a random matrix stays the same when it is multiplied by this.
    factor = (jax.random.normal(random_key(0), (n, n)) / n**0.5).astype(dtype)
    multiply = jax.jit(jnp.matmul)
    return 2 * n**3 / _shortest(lambda a: multiply(a, factor), factor, chained=chained)


@functools.cache
def measured_bandwidth(megabytes: int = 512, chained: int = 1) -> float:
    """Returns the bytes read per second by the fastest of several matrix-vector products.

    Decoding, too, mostly reads. Bytes that are written cost extra time on some machines and not on
    others, so they are few here. The matrix has one part for each core of a CPU, because XLA reads
    each part with one thread.

    Args:
        megabytes: the size of the matrix.
        chained: see `measured_matmul_peak`.
    """
    width, parts = 1024, (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    rows = megabytes * 2**20 // (4 * width * parts)
    keys = jax.random.split(random_key(0), parts)
    matrices = [jax.random.uniform(key, (rows, width)) / width for key in keys]

    @jax.jit
    def read(x: jax.Array, matrices: list[jax.Array]) -> jax.Array:
        return sum((matrix @ x).mean() for matrix in matrices) * x / parts

    seconds = _shortest(lambda x: read(x, matrices), jnp.ones(width), chained=chained)
    return parts * matrices[0].nbytes / seconds


def _shortest(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, repeats: int = 10, chained: int = 1
) -> float:
    """Returns the shortest time of a call in seconds; each call gets the result of the last.

    Args:
        function: the function to time.
        x: the argument of the first call.
        repeats: how many times are measured.
        chained: how many calls are timed together. If there are several, an accelerator can start
            the next while the host waits.
    """
    x = function(x).block_until_ready()  # Compiles the function.
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(chained):
            x = function(x)
        x.block_until_ready()
        times.append((time.perf_counter() - start) / chained)
    return min(times)


def _sharers(device: jax.Device) -> int:
    return len(jax.local_devices(backend="cpu")) if device.platform == "cpu" else 1


def trim_heap() -> None:
    """Returns freed memory to the system, if the C library can (glibc's malloc_trim).

    Arrays of some megabytes come from the heap of the C library, which keeps them when they are
    freed: hundreds of megabytes after a model of gigabytes was read.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
