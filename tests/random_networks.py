"""Weights by the rule that expected values were computed with, as state dicts and as files."""

import json
import zlib

import numpy as np

from cogview_jax.interop.torch_format.file import write_torch
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.models.networks.convolution import ConvWeights
from cogview_jax.models.networks.lpips import NETWORKS, LpipsWeights


def _values(key, seed, shape):
    seed = (zlib.crc32(key.encode()) + seed) % 2**32
    return np.random.default_rng(seed).standard_normal(shape)


def _norm(key, x):
    """The arrays of a batch norm, which the two rules have in common."""
    if key.endswith("running_var"):
        return np.exp(0.2 * x)
    if key.endswith(("running_mean", "bias")):
        return 0.1 * x
    return 1 + 0.1 * x


def inception_state(oracles, classes=1008):
    """The state dict of Inception v3 as the oracles' README has it: 24 M values."""
    seed = json.loads(oracles("inception/facts.json").read_text())["rule_seed"]
    shapes = json.loads(oracles("inception/shapes.json").read_text())
    state = {}
    for key, shape in shapes.items():
        shape = [classes, *shape[1:]] if key.startswith("fc.") else shape
        x = _values(key, seed, shape)
        if key.endswith("conv.weight"):
            x *= np.sqrt(2.25 / np.prod(shape[1:]))
        elif key.startswith("fc."):
            x *= 8 / np.sqrt(2048) if len(shape) == 2 else 0.5
        else:
            x = _norm(key, x) - (0.08 if key.endswith("bn.bias") else 0)
        state[key] = x.astype(np.float32)
    return state


def efficientnet_state(fixtures):
    """The state dict of EfficientNet-Lite0 by the rule in the fixtures' README."""
    shapes = json.loads((fixtures / "efficientnet_lite0" / "shapes.json").read_text())
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = np.array(7)
            continue
        x = _values(key, 20210526, shape)
        if len(shape) == 4:
            x *= np.sqrt(2 / np.prod(shape[1:]))
        elif key.startswith("_fc."):
            x *= 4 / np.sqrt(1280) if len(shape) == 2 else 0.5
        else:
            x = _norm(key, x)
        state[key] = x.astype(np.float32)
    return state


def write_state(path, state):
    """A torch file with a state dict."""
    slots = {name: Slot(array.shape, array.dtype) for name, array in state.items()}
    write_torch(path, slots, [(slots[name], array) for name, array in state.items()])
    return path


def lpips_weights(network, channels=(3, 4, 5, 6, 7), seed=0):
    """Narrow weights of LPIPS: `channels` are those of the five features."""
    rng = np.random.default_rng(seed)
    known = NETWORKS[network]
    convs, inputs = [], 3
    for i, taps in enumerate(known.kernels):
        outputs = channels[next(k for k, tapped in enumerate(known.tapped) if i <= tapped)]
        kernel = rng.standard_normal((taps, taps, inputs, outputs)) / (taps * inputs**0.5)
        bias = 0.1 * rng.standard_normal(outputs)
        convs.append(ConvWeights(kernel.astype(np.float32), bias.astype(np.float32)))
        inputs = outputs
    heads = tuple(rng.random(c).astype(np.float32) for c in channels)
    return LpipsWeights(network=network, convs=tuple(convs), heads=heads)
