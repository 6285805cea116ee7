"""PatchGAN discriminators in the state dicts of taming-transformers and LlamaGen, to compare with.

A table of names holds for both directions and is checked from both sides: each name is used exactly
once, and what is missing, unknown or of another shape is named. Sizes are those of the file.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cogview_jax.interop.named_arrays import OIHW, Arrays, below, listed
from cogview_jax.models.networks.discriminator import (
    TAPS,
    ActNormState,
    BatchNormState,
    DiscriminatorConfig,
    DiscriminatorState,
    conv_name,
    norm_name,
)
from cogview_jax.runtime.errors import InputError

#: Where a VQGAN checkpoint has the discriminator.
DISCRIMINATOR_PREFIX = "loss.discriminator."


class DiscriminatorRule(NamedTuple):
    """A name in a state dict, and where its array is here.

    layer: the number of its convolution. module, array: names in the parameters or, if `kept`, in
    the state. axes: how many the array has there.
    """

    theirs: str
    layer: int
    module: str
    array: str
    axes: int
    kept: bool = False


#: The types of what is counted in a state dict.
COUNTS = {"batches": np.int64, "initialised": np.uint8}


def discriminator_rules(config: DiscriminatorConfig) -> tuple[DiscriminatorRule, ...]:
    """The table for a discriminator with BatchNorm or ActNorm, in the order of a state dict."""
    assert config.norm in ("batch", "actnorm"), "the original has no other norm"
    rules, place = [], 0
    for i, layer in enumerate(config.sizes):
        conv, norm = conv_name(i), norm_name(i)
        rules.append(DiscriminatorRule(f"main.{place}.weight", i, conv, "kernel", 4))
        if layer.bias:
            rules.append(DiscriminatorRule(f"main.{place}.bias", i, conv, "bias", 1))
        place += 1
        if layer.normed and config.norm == "batch":
            rules += [
                DiscriminatorRule(f"main.{place}.weight", i, norm, "scale", 1),
                DiscriminatorRule(f"main.{place}.bias", i, norm, "bias", 1),
                DiscriminatorRule(f"main.{place}.running_mean", i, norm, "mean", 1, True),
                DiscriminatorRule(f"main.{place}.running_var", i, norm, "var", 1, True),
                DiscriminatorRule(f"main.{place}.num_batches_tracked", i, norm, "batches", 0, True),
            ]
        elif layer.normed:
            rules += [
                DiscriminatorRule(f"main.{place}.loc", i, norm, "loc", 4),
                DiscriminatorRule(f"main.{place}.scale", i, norm, "scale", 4),
                DiscriminatorRule(f"main.{place}.initialized", i, norm, "initialised", 0, True),
            ]
        place += 1 + layer.normed  # LeakyReLU has a place too
    return tuple(rules)


def discriminator_from_torch(
    tensors: Mapping[str, Any], where: str
) -> tuple[DiscriminatorConfig, dict[str, Any], DiscriminatorState]:
    """A PatchGAN of taming-transformers or LlamaGen: its sizes, parameters and state, as numpy.

    Args:
        tensors: the state dict, from `main.0.weight` on, or a checkpoint's with it below
            `loss.discriminator.`.
        where: the file, for complaints.

    Raises:
        InputError: a name is missing or unknown, or an array has another shape than it has to have.
    """
    tensors = below(tensors, DISCRIMINATOR_PREFIX)
    config = _discriminator_config(tensors, where)
    arrays = Arrays(tensors, OIHW, where)
    rules = discriminator_rules(config)
    arrays.check_names([rule.theirs for rule in rules])
    image_channels = arrays.inputs("main.0.weight")
    params: dict[str, Any] = {}
    kept: dict[str, dict[str, Any]] = {}
    for rule in rules:
        layer = config.sizes[rule.layer]
        if rule.array == "kernel":
            inputs = config.sizes[rule.layer - 1].features if rule.layer else image_channels
            array = arrays.kernel(rule.theirs, (TAPS, TAPS, inputs, layer.features))
        else:
            shape = {1: (layer.features,), 4: (1, layer.features, 1, 1), 0: ()}[rule.axes]
            array = arrays.get(rule.theirs, shape).reshape(shape and (-1,))
        tree = kept if rule.kept else params
        tree.setdefault(rule.module, {})[rule.array] = array
    state = {
        name: _norm_state(config, each, params[name]["scale"].size) for name, each in kept.items()
    }
    return config, params, state


def discriminator_to_torch(
    config: DiscriminatorConfig, params: Mapping[str, Any], state: DiscriminatorState
) -> dict[str, np.ndarray]:
    """The state dict, from `main.0.weight` on, of a discriminator with "batch" or "actnorm"."""
    found = {}
    for rule in discriminator_rules(config):
        kept = state.get(rule.module)
        if rule.kept:
            array = np.asarray(getattr(kept, rule.array))
            if rule.array in COUNTS:
                array = np.asarray(array, COUNTS[rule.array])
        else:
            array = np.asarray(params[rule.module][rule.array])
            if isinstance(kept, ActNormState):
                array = array + np.asarray(getattr(kept, rule.array))
        if rule.array == "kernel":
            array = np.ascontiguousarray(array.transpose(OIHW))
        elif rule.axes == 4:
            array = array.reshape(1, -1, 1, 1)
        found[rule.theirs] = array
    return found


def _discriminator_config(state: Mapping[str, Any], where: str) -> DiscriminatorConfig:
    """The sizes of a discriminator, from the shapes of its convolutions."""
    convolutions = [
        name
        for name, array in state.items()
        if re.fullmatch(r"main\.\d+\.weight", name) and len(np.shape(array)) == 4
    ]
    if len(convolutions) < 3 or "main.0.weight" not in convolutions:
        raise InputError(
            f"{where} holds no PatchGAN discriminator: expected convolutions from main.0.weight on,"
            f" got {listed(sorted(state)) or 'nothing'}"
        )
    actnorm = any(name.endswith(".loc") for name in state)
    return DiscriminatorConfig(
        channels=np.shape(state["main.0.weight"])[0],
        layers=len(convolutions) - 2,
        norm="actnorm" if actnorm else "batch",
    )


def _norm_state(config: DiscriminatorConfig, arrays: Mapping[str, Any], channels: int) -> Any:
    if config.norm == "batch":
        return BatchNormState(arrays["mean"], arrays["var"], np.int32(arrays["batches"]))
    # Nothing is added to the parameters, which hold all that a file has.
    zeros = np.zeros(channels, np.float32)
    return ActNormState(zeros, zeros, np.bool_(arrays["initialised"]))
