"""Peaks are found for the names that devices give themselves, and measured where they are not."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.runtime import hardware
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.hardware import (
    accelerator,
    free_memory,
    known,
    measured_bandwidth,
    measured_matmul_peak,
    memory_bandwidth,
    peak_flops,
)


@pytest.mark.parametrize(
    ("device_kind", "bfloat16", "bandwidth"),
    [
        ("Tesla V100-SXM2-16GB", 15.7, 0.9),
        ("Tesla V100-SXM2-32GB", 15.7, 0.9),
        ("NVIDIA A100-SXM4-40GB", 312, 1.555),
        ("NVIDIA A100-SXM4-80GB", 312, 2.039),
        ("NVIDIA A100 80GB PCIe", 312, 1.935),
        ("NVIDIA H100 80GB HBM3", 989, 3.35),
        ("NVIDIA H100 PCIe", 756, 2.0),
        ("NVIDIA H200", 989, 4.8),
        ("NVIDIA B200", 2250, 8.0),
        ("TPU v3", 61.5, 0.45),
        ("TPU v4", 275, 1.2),
        ("TPU v5 lite", 197, 0.819),
        ("TPU v5", 459, 2.765),
        ("TPU v5p", 459, 2.765),
        ("TPU v6 lite", 918, 1.64),
    ],
)
def test_names_that_devices_give_themselves(device_kind, bfloat16, bandwidth):
    row = known(device_kind)
    assert (row.bfloat16, row.bandwidth) == (bfloat16, bandwidth)


@pytest.mark.parametrize(
    ("name", "bfloat16", "memory"),
    [
        ("H100", 989, 80),
        ("h200", 989, 140.6),
        ("A100", 312, 40),
        ("A100-SXM4-80GB", 312, 80),
        ("V100-SXM2-32GB", 15.7, 32),
        ("v5e", 197, 16),
        ("tpu v5p", 459, 95),
    ],
)
def test_names_that_users_give(name, bfloat16, memory):
    row = accelerator(name)
    assert row.bfloat16 == bfloat16
    assert row.memory * 1e9 / 2**30 == pytest.approx(memory, rel=0.01)


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(InputError, match=r"'H300' is unknown; choose from V100-SXM2-32GB, .*v5p"):
        accelerator("H300")


@pytest.mark.parametrize("device_kind", ["cpu", "NVIDIA GeForce RTX 4090", "NVIDIA GH200 480GB"])
def test_unknown_devices_are_not_guessed(device_kind):
    assert known(device_kind) is None


def test_measured_peak_is_near_what_numpy_reaches():
    a, times, peaks = np.ones((1024, 1024), np.float32), [], []
    # Of both sides the best of five turns: other work may take the cores from one of them.
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
        peaks.append(measured_matmul_peak.__wrapped__(jnp.dtype("float32")))
    ratio = max(peaks) / (2 * 1024**3 / min(times))
    assert 0.1 < ratio < 10  # a busy machine; a wrong unit or a missing synchronisation is 1000


def test_cpu_devices_share_one_machine(monkeypatch):
    # Of 16 MB instead of 512, whose random numbers take 20 s to draw.
    measured = measured_bandwidth(16)
    monkeypatch.setattr(hardware, "measured_bandwidth", lambda: measured_bandwidth(16))
    devices = jax.devices()
    assert len(devices) == 8
    assert peak_flops(devices[0], jnp.float32) == measured_matmul_peak(jnp.dtype("float32")) / 8
    assert memory_bandwidth(devices[0]) == measured / 8
    assert 1e9 < measured < 1e13


def test_free_memory_is_the_machine_s_shared_by_its_devices():
    free = free_memory(jax.devices("cpu")[0])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free <= total / len(jax.devices("cpu"))
