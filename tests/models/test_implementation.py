"""A model runs the programs that its device, types and sizes allow, or that a config asks for."""

import dataclasses
from typing import Any

import jax
import pytest

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.implementation import (
    Implementation,
    ImplementationConfig,
    choose_implementation,
)
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import policy

PAPER = TransformerConfig()


@dataclasses.dataclass
class Device:
    """The properties of a device that this machine does not have."""

    platform: str
    compute_capability: Any = None
    device_kind: str = "some device"


H200 = Device("gpu", "9.0", "NVIDIA H200")
TPU = Device("tpu", device_kind="TPU v5e")


@pytest.mark.parametrize(
    ("device", "precision", "heads", "expected"),
    [
        (H200, "bfloat16", 40, "cudnn"),
        (Device("gpu", "10.3"), "float16", 20, "cudnn"),
        (Device("gpu", "8.0"), "bfloat16", 64, "cudnn"),
        (Device("gpu", "7.0"), "float16", 40, "blocks"),
        (Device("gpu", "gfx942"), "bfloat16", 40, "blocks"),
        (H200, "float32", 40, "blocks"),
        (H200, "float16_pure", 40, "blocks"),
        (H200, "bfloat16", 128, "blocks"),  # head width 20
        (H200, "bfloat16", 10, "blocks"),  # head width 256
        (TPU, "bfloat16", 40, "splash"),
        (TPU, "float32", 16, "splash"),
        (TPU, "float16", 40, "blocks"),
        (TPU, "float16_pure", 40, "blocks"),
        (Device("tpu", device_kind="TPU v3"), "bfloat16", 40, "blocks"),
        (Device("cpu", "9.0"), "bfloat16", 40, "blocks"),
    ],
)
def test_the_fused_kernel_runs_where_it_can(device, precision, heads, expected):
    config = dataclasses.replace(PAPER, heads=heads)
    found = choose_implementation(config, policy(precision), device=device)
    assert (found.attention, found.platform) == (expected, device.platform)
    assert found.fused == (expected in ("cudnn", "splash"))


@pytest.mark.parametrize(
    ("switches", "precision", "devices", "expected"),
    [
        ({}, "bfloat16", 1, "token_step"),
        ({}, "float16", 1, "token_step"),
        ({}, "float16_pure", 1, "layers"),
        ({}, "bfloat16", 2, "layers"),
        ({"attention": "sparse"}, "bfloat16", 1, "layers"),
        ({"width": 640, "heads": 10}, "bfloat16", 1, "cache_kernel"),
        ({"width": 640, "heads": 16}, "bfloat16", 1, "layers"),  # heads of 40 numbers
        ({"width": 512, "heads": 64}, "bfloat16", 1, "layers"),  # of 8
    ],
)
def test_decoding_runs_the_largest_kernels_that_can(switches, precision, devices, expected):
    config = TransformerConfig(**switches)
    assert (
        choose_implementation(config, policy(precision), devices=devices, device=H200).decoding
        == expected
    )


def test_a_config_decides():
    wanted = ImplementationConfig(attention="xla", decoding="cache_kernel")
    found = choose_implementation(PAPER, policy("bfloat16"), wanted, device=H200)
    assert found == Implementation("xla", "cache_kernel", "gpu")


def test_kernels_of_gpus_do_not_decode_on_tpus():
    assert choose_implementation(PAPER, policy("bfloat16"), device=TPU).decoding == "layers"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"attention": "cudnn"},
            "implementation.attention 'cudnn' .* auto, xla, blocks$",
        ),
        (
            {"attention": "splash"},
            "implementation.attention 'splash' .* auto, xla, blocks$",
        ),
        ({"decoding": "token_step"}, "implementation.decoding 'token_step' .* auto, layers$"),
    ],
)
def test_what_a_device_cannot_run_is_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        choose_implementation(
            PAPER, policy("bfloat16"), ImplementationConfig(**wanted), device=Device("cpu")
        )
    with pytest.raises(InputError, match="on NVIDIA H200: choose from auto"):
        choose_implementation(PAPER, policy("float32"), ImplementationConfig(**wanted), device=H200)


def test_a_model_without_one_runs_what_is_fastest_on_the_first_device():
    model = Transformer(PAPER, 60, 24, policy("bfloat16"))
    assert model.implementation == choose_implementation(
        PAPER, policy("bfloat16"), device=jax.devices()[0]
    )
    other = Implementation("xla", "layers", "tpu")
    assert model.clone(implementation=other).clone(positions=9).implementation == other
