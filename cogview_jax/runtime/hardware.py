"""What the hardware could do at best: the denominator of every efficiency figure.

Model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B) is

    MFU = model FLOPs per second / (devices x peak FLOPs per second of one device)

where model FLOPs are those of the mathematics (6 a parameter and token, plus attention), not those
that rematerialisation adds. Likewise decoding is held against the bytes it must read a token over
`memory_bandwidth`. Makers' figures are used where the device is known (dense, without sparsity);
elsewhere, as on CPUs, the peak is what a large matrix product reaches, or a program that reaches
more: other work may take the cores while the product is measured.
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


@dataclass(frozen=True)
class Accelerator:
    """Peaks of one jax device, in 1e12 FLOPs a second and 1e12 bytes a second, and its memory.

    `float32` is what jax's default matmul precision uses: TF32 since Ampere, one bfloat16 pass on
    TPUs. `memory` is in 1e9 bytes; the runtime keeps a few percent of it to itself. A jax device of
    a TPU v3 is one of the chip's two cores; since v4 it is the chip.
    """

    kind: str
    bfloat16: float
    float16: float
    float32: float
    bandwidth: float
    memory: float

    @property
    def name(self) -> str:
        """What users call it."""
        return self.kind.removesuffix("?")


# `kind` is sought as whole words in `device.device_kind`; the first match counts.
ACCELERATORS = (
    Accelerator("V100-SXM2-32GB", 15.7, 125, 15.7, 0.9, 34.4),
    Accelerator("V100", 15.7, 125, 15.7, 0.9, 17.2),  # no bfloat16 tensor cores
    Accelerator("A100-SXM4-80GB", 312, 312, 156, 2.039, 85.9),
    Accelerator("A100 80GB PCIe", 312, 312, 156, 1.935, 85.9),
    Accelerator("A100", 312, 312, 156, 1.555, 42.9),
    Accelerator("H100 PCIe", 756, 756, 378, 2.0, 85.9),
    Accelerator("H100 NVL", 835, 835, 417, 3.9, 100.9),
    Accelerator("H100", 989, 989, 495, 3.35, 85.9),
    Accelerator("H200", 989, 989, 495, 4.8, 151.0),
    Accelerator("B200", 2250, 2250, 1125, 8.0, 193.0),
    Accelerator("TPU v3", 61.5, 61.5, 61.5, 0.45, 17.2),
    Accelerator("TPU v4", 275, 275, 275, 1.2, 34.4),
    Accelerator("TPU v5 lite", 197, 197, 197, 0.819, 17.2),
    Accelerator("TPU v5e", 197, 197, 197, 0.819, 17.2),
    Accelerator("TPU v5p?", 459, 459, 459, 2.765, 102.0),
    Accelerator("TPU v6 lite", 918, 918, 918, 1.64, 34.4),
    Accelerator("TPU v6e", 918, 918, 918, 1.64, 34.4),
)


def accelerator(name: str) -> Accelerator:
    """The table's row that a user means: "H100", "v5p", "V100-SXM2-32GB", in any case.

    Raises:
        InputError: there is none; the message has the choices.
    """
    wanted = name.casefold().removeprefix("tpu ")
    for row in ACCELERATORS:
        if wanted == row.name.casefold().removeprefix("tpu "):
            return row
    choices = ", ".join(row.name for row in ACCELERATORS)
    raise InputError(f"accelerator {name!r} is unknown; choose from {choices}")


def known(device_kind: str) -> Accelerator | None:
    """The table's row for a `device.device_kind`, None where there is none."""
    for row in ACCELERATORS:
        if re.search(rf"\b{row.kind}\b", device_kind):
            return row
    return None


def peak_flops(device: jax.Device, dtype: DTypeLike) -> float:
    """Peak FLOPs per second of one device for matrix products in `dtype`.

    Devices that are not in the table are measured once (a moment on a CPU). CPU devices share one
    machine, however many jax was told to make of it, so each counts as its part. A CPU's peak is
    that of float32 for all types: XLA may widen to it those whose own products are slower.
    """
    row = known(device.device_kind)
    if row is not None:
        return getattr(row, jnp.dtype(dtype).name) * 1e12
    if device.platform == "cpu":
        return measured_matmul_peak(jnp.dtype("float32")) / _sharers(device)
    # As large and as many as it takes for their start not to count.
    return measured_matmul_peak(jnp.dtype(dtype), 8192, 10)


def memory_bandwidth(device: jax.Device) -> float:
    """Peak bytes per second between one device and its memory; measured where unknown.

    CPU devices share one machine, however many jax was told to make of it: each has its part.
    """
    row = known(device.device_kind)
    return row.bandwidth * 1e12 if row is not None else measured_bandwidth() / _sharers(device)


def machine() -> dict[str, Any]:
    """What the last bits of a run's numbers depend on, as JSON has it.

    On a CPU also the number of cores this process may use: XLA cuts long sums by it.
    """
    device = jax.devices()[0]
    found = {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }
    if device.platform == "cpu":
        # Not every system lets a process ask which cores are its own.
        own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
        found["cores"] = len(own(0))
    return found


def device_memory() -> dict[str, float]:
    """device_memory: the most bytes that this process's first device held; nothing on CPUs."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device_memory": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}


def free_memory(device: jax.Device) -> int | None:
    """Bytes that programs may still take on one device; None where that cannot be known.

    Of a GPU or TPU as its allocator counts; of a CPU the machine's, shared by its jax devices.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # no Linux
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(available[0]) * 1024 // _sharers(device) if available else None


@functools.cache
def measured_matmul_peak(dtype: DTypeLike = jnp.float32, n: int = 1024, chained: int = 1) -> float:
    """FLOPs per second of the fastest of several jitted [n, n] @ [n, n], on the default device.

    Of random numbers: a GPU is faster on zeros, which cost it less power. chained: products
    between two looks at the clock; an accelerator needs some for its start not to count.
    """
    # The magnitude of a random matrix stays the same when it is multiplied by this.
    factor = (jax.random.normal(random_key(0), (n, n)) / n**0.5).astype(dtype)
    multiply = jax.jit(jnp.matmul)
    return 2 * n**3 / _shortest(lambda a: multiply(a, factor), factor, chained=chained)


@functools.cache
def measured_bandwidth(megabytes: int = 512, chained: int = 1) -> float:
    """Bytes per second, read, of the fastest of several jitted products of a matrix and a vector.

    Reading alone, as decoding does: what is written comes on top on some machines and not on
    others. The matrix is in one part for each core of a CPU, which reads each with one thread.
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
    """The least seconds of a call over several trials, each on the result of the one before.

    chained: calls of a trial. Several let an accelerator start the next while the host waits.
    """
    x = function(x).block_until_ready()  # compiles
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
    """Gives back what the C library keeps for later, where it can (glibc's malloc_trim).

    Arrays of some megabytes come from its heap, and what they leave behind stays with the process:
    after a model of gigabytes was read, hundreds of megabytes.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
