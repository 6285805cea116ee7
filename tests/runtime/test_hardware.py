"""Peaks are found for the names that devices give themselves, and measured where they are not."""

import os

import jax
import jax.numpy as jnp
import pytest

from cogview_jax.runtime import hardware
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.hardware import (
    accelerator,
    free_memory,
    known,
    measured_bandwidth,
    measured_matmul_peak,
    peak_flops,
)


@pytest.mark.parametrize(
    ("device_kind", "bfloat16", "memory"),
    [
        ("Tesla V100-SXM2-16GB", 15.7, 17.2),
        ("Tesla V100-SXM2-32GB", 15.7, 34.4),
        ("NVIDIA A100-SXM4-40GB", 312, 42.9),
        ("NVIDIA A100-SXM4-80GB", 312, 85.9),
        ("NVIDIA A100 80GB PCIe", 312, 85.9),
        ("NVIDIA H100 80GB HBM3", 989, 85.9),
        ("NVIDIA H100 PCIe", 756, 85.9),
        ("NVIDIA H200", 989, 151.0),
        ("NVIDIA B200", 2250, 193.0),
        ("TPU v3", 61.5, 17.2),
        ("TPU v4", 275, 34.4),
        ("TPU v5 lite", 197, 17.2),
        ("TPU v5", 459, 102.0),
        ("TPU v5p", 459, 102.0),
        ("TPU v6 lite", 918, 34.4),
    ],
)
def test_names_that_devices_give_themselves(device_kind, bfloat16, memory):
    row = known(device_kind)
    assert (row.bfloat16, row.memory) == (bfloat16, memory)


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


def test_the_shortest_time_is_of_work_that_is_done(monkeypatch):
    """A device has begun when a call returns; only waiting for it shows how long it takes."""
    clock, speeds = [0.0], iter([9.0, 5.0, 2.0, 3.0])  # the first compiles

    class Pending:
        def __init__(self, calls):
            self.calls = calls

        def block_until_ready(self):
            clock[0] += self.calls * next(speeds)
            self.calls = 0
            return self

    monkeypatch.setattr(hardware.time, "perf_counter", lambda: clock[0])

    def call(x):
        return Pending(getattr(x, "calls", 0) + 1)

    assert hardware._shortest(call, jnp.ones(()), 3, chained=4) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_peak_is_that_of_the_products_that_are_timed(dtype, monkeypatch):
    def shortest(function, x, chained):
        assert (x.shape, x.dtype, function(x).shape) == ((32, 32), dtype, (32, 32))
        return 0.25

    monkeypatch.setattr(hardware, "_shortest", shortest)
    # A product of 32 x 32 has 32^2 sums of 32 products and as many additions.
    assert measured_matmul_peak.__wrapped__(jnp.dtype(dtype), 32) == 4 * 2 * 32 * 32 * 32


def test_a_bandwidth_is_that_of_the_bytes_that_are_read(monkeypatch):
    monkeypatch.setattr(hardware, "_shortest", lambda function, x, chained: 0.25)
    assert measured_bandwidth.__wrapped__(16) == 4 * 16 * 2**20


def test_cpu_devices_share_one_machine():
    devices = jax.devices()
    assert len(devices) == 8
    assert peak_flops(devices[0], jnp.float32) == measured_matmul_peak(jnp.dtype("float32")) / 8


def test_measured_bandwidth_is_that_of_a_memory():
    # Of 16 MB instead of 512, whose random numbers take 20 s to draw.
    assert 1e9 < measured_bandwidth(16) < 1e13


def test_free_memory_is_the_machine_s_shared_by_its_devices():
    free = free_memory(jax.devices("cpu")[0])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free <= total / len(jax.devices("cpu"))
