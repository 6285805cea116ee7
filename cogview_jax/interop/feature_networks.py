"""Weights of networks whose features metrics compare, in the files of others, by tables of names.

A file is one of torch (with a state dict), safetensors, or a msgpack of nested dicts; names and
axes are those of the torch file in each of them. The names of a file are checked from both sides:
what is missing, unknown or of another shape is named, and so is another network that is known.
Batch norms become part of the convolutions they follow.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import serialization

from cogview_jax.interop.named_arrays import OIHW, Arrays, listed, state_dict
from cogview_jax.interop.rules import flat
from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.interop.torch_format.legacy import is_legacy
from cogview_jax.models.networks import efficientnet, inception
from cogview_jax.models.networks.convolution import ConvWeights
from cogview_jax.models.networks.efficientnet import BlockWeights, EfficientNetWeights
from cogview_jax.models.networks.inception import InceptionWeights, folded
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_regular

#: The most bytes of a msgpack.
LARGEST = 8 << 30
#: What pytorch-fid calls its file.
FID_FILE = "pt_inception-2015-12-05-6726825d.pth"
#: Outputs of torchvision's Inception v3, and where its file has a second classifier.
TORCHVISION_CLASSES, AUXILIARY = 1000, "AuxLogits."
#: The arrays of a batch norm, in the order in which `folded` takes them; what it counts is dropped.
_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTED = ".num_batches_tracked"
#: An array that only the files of a network have -> the network.
_KNOWN = {
    "Mixed_7c.branch_pool.conv.weight": "Inception v3",
    "_blocks.15._depthwise_conv.weight": "EfficientNet-Lite0",
    "visual_projection.weight": "CLIP",
    "scaling_layer.shift": "LPIPS",
    "features.28.weight": "VGG-16",
    "features.10.weight": "AlexNet",
}


def read_arrays(path: Path | str) -> dict[str, Any]:
    """The named arrays of a file: name with dots -> `Tensor` or numpy array.

    Raises:
        InputError: there is no such file, or it is of none of the formats, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at {path}: expected a file")
    if zipfile.is_zipfile(path) or is_legacy(path):
        return state_dict(read_torch(path), str(path))
    with open(path, "rb") as file:
        header = file.read(9)
    try:
        if header[8:] == b"{":
            return dict(safetensors.numpy.load_file(path))
        tree = serialization.msgpack_restore(read_regular(path, LARGEST))
        found = {name: np.asarray(array) for name, array in flat(tree).items()}
    except InputError:
        raise
    except Exception as error:  # a damaged file can end in any of them
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} holds no weights: expected a torch file, safetensors or a msgpack of named"
            f" arrays ({reason})"
        ) from error
    return found


def read_inception(path: Path | str, *, torchvision: bool = False) -> InceptionWeights:
    """The weights of Inception v3 in a file that has the names of pytorch-fid or torchvision.

    Args:
        path: the file; for FID pytorch-fid's `FID_FILE`.
        torchvision: whether torchvision's network, of 1000 classes, may be in the file too. Its
            second classifier is dropped.

    Raises:
        InputError: the file is of another network, lacks an array, has one that no rule knows, or
            one of another shape.
    """
    arrays = Arrays(_uncounted(read_arrays(path)), OIHW, f"{path} (Inception v3)")
    names = [f"{conv}.{part}" for conv in inception.CONVS for part in _parts("conv", "bn")]
    _check_network(arrays, names, "Inception v3", str(path))
    classes = inception.CLASSES
    if np.shape(arrays.state.get("fc.weight", ())) == (TORCHVISION_CLASSES, inception.FEATURES):
        if not torchvision:
            raise InputError(
                f"{path} holds torchvision's Inception v3, which has {TORCHVISION_CLASSES} classes:"
                f" expected that of FID, {classes} classes, as in {FID_FILE}"
            )
        classes = TORCHVISION_CLASSES
        kept = {k: array for k, array in arrays.state.items() if not k.startswith(AUXILIARY)}
        arrays = arrays._replace(state=kept)
    arrays.check_names([*names, "fc.weight", "fc.bias"])
    convs = {
        name: _folded(arrays, f"{name}.conv", f"{name}.bn", shape)
        for name, shape in inception.CONVS.items()
    }
    weights = InceptionWeights(convs, _head(arrays, "fc", inception.FEATURES, classes))
    return _finite(weights, str(path))


def read_efficientnet(path: Path | str) -> EfficientNetWeights:
    """The weights of EfficientNet-Lite0 in a file with the names of EfficientNet-PyTorch.

    Raises:
        InputError: the file is of another network, lacks an array, has one that no rule knows, or
            one of another shape.
    """
    arrays = Arrays(_uncounted(read_arrays(path)), OIHW, f"{path} (EfficientNet-Lite0)")
    names = [*_parts("_conv_stem", "_bn0"), *_parts("_conv_head", "_bn1"), "_fc.weight", "_fc.bias"]
    for i, shape in enumerate(efficientnet.BLOCKS):
        layers = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        layers += [("_expand_conv", "_bn0")] * (shape.wide > shape.inputs)
        names += [f"_blocks.{i}.{part}" for layer in layers for part in _parts(*layer)]
    _check_network(arrays, names, "EfficientNet-Lite0", str(path))
    arrays.check_names(names)
    blocks = []
    for i, (taps, _, inputs, wide, outputs) in enumerate(efficientnet.BLOCKS):
        at = f"_blocks.{i}."
        expand = None
        if wide > inputs:
            expand = _folded(arrays, f"{at}_expand_conv", f"{at}_bn0", (1, 1, inputs, wide))
        depthwise = _folded(arrays, f"{at}_depthwise_conv", f"{at}_bn1", (taps, taps, 1, wide))
        project = _folded(arrays, f"{at}_project_conv", f"{at}_bn2", (1, 1, wide, outputs))
        blocks.append(BlockWeights(expand, depthwise, project))
    last = (1, 1, efficientnet.BLOCKS[-1].outputs, efficientnet.FEATURES)
    weights = EfficientNetWeights(
        _folded(arrays, "_conv_stem", "_bn0", (3, 3, 3, efficientnet.STEM)),
        tuple(blocks),
        _folded(arrays, "_conv_head", "_bn1", last),
        _head(arrays, "_fc", efficientnet.FEATURES, efficientnet.CLASSES),
    )
    return _finite(weights, str(path))


def _parts(conv: str, norm: str) -> list[str]:
    """The arrays of a convolution without a bias and its batch norm."""
    return [f"{conv}.weight", *(f"{norm}.{name}" for name in _NORM)]


def _folded(arrays: Arrays, conv: str, norm: str, shape: tuple[int, ...]) -> ConvWeights:
    """A convolution of a kernel of that shape, its batch norm folded in."""
    kernel = arrays.kernel(f"{conv}.weight", shape)
    scale, shift, mean, variance = (arrays.get(f"{norm}.{name}", shape[-1:]) for name in _NORM)
    with np.errstate(all="ignore"):  # `_finite` looks at what comes of it
        return folded(kernel, scale, shift, mean, variance)


def _head(arrays: Arrays, name: str, inputs: int, outputs: int) -> ConvWeights:
    """The last layer: kernel [inputs, outputs] and bias [outputs]."""
    kernel = arrays.get(f"{name}.weight", (outputs, inputs))
    return ConvWeights(np.ascontiguousarray(kernel.T), arrays.get(f"{name}.bias", (outputs,)))


def _uncounted(state: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays without what batch norms count."""
    return {name: array for name, array in state.items() if not name.endswith(_COUNTED)}


def _check_network(arrays: Arrays, names: list[str], network: str, where: str) -> None:
    """InputError where the arrays are of another network, which is named if it is known."""
    found = next((known for name, known in _KNOWN.items() if name in arrays.state), None)
    if found not in (None, network):
        raise InputError(f"{where} holds weights of {found}, expected {network}")
    if not any(name in arrays.state for name in names):
        raise InputError(
            f"{where} holds no weights of {network}: got"
            f" {listed(sorted(arrays.state)) or 'nothing'}"
        )


def _finite(weights: Any, where: str) -> Any:
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(weights)):
        raise InputError(f"{where}: some weights are no finite numbers")
    return weights
