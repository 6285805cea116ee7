"""A feature network small enough to run in every test: one convolution of random weights."""

from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.evaluation import feature_networks
from cogview_jax.evaluation.feature_networks import FeatureNetwork, Normalisation, OpenNetwork
from cogview_jax.runtime.errors import InputError

PIXELS, FEATURES, CLASSES = 16, 6, 4


def features(weights, images):
    """Means over positions of rectified responses: [b, 16, 16, 3] -> [b, FEATURES]."""
    responses = jax.lax.conv_general_dilated(
        images, weights["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.mean(jax.nn.relu(responses), axis=(1, 2))


def logits(weights, pooled):
    """Of CLASSES classes."""
    return pooled @ weights["head"]


def _open(path, resize):
    try:
        with np.load(path, allow_pickle=False) as file:
            return OpenNetwork(dict(file), features, logits)
    except (ValueError, OSError):
        raise InputError(f"{path} holds no weights of the tiny network") from None


TINY = FeatureNetwork(
    description="for tests",
    file="a file of numpy arrays",
    source="tests/tiny_features.py",
    dimension=FEATURES,
    pixels=PIXELS,
    resizes={name: Normalisation((127.5,) * 3, (127.5,) * 3) for name in ("clean", "tf1")},
    open=_open,
)


def write_weights(path, seed=0):
    """A file of random weights."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((3, 3, 3, FEATURES)).astype(np.float32)
    head = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
    np.savez(path, kernel=kernel, head=head)
    return path


def offer(monkeypatch):
    """Makes `--features tiny=FILE` known."""
    networks = MappingProxyType({**feature_networks.FEATURE_NETWORKS, "tiny": TINY})
    for module in ("feature_networks", "features"):
        monkeypatch.setattr(f"cogview_jax.evaluation.{module}.FEATURE_NETWORKS", networks)
    for name in ("emoji", "fid", "pictures", "tokenizer"):
        place = f"cogview_jax.evaluation.benchmarks.{name}.FEATURE_NETWORKS"
        monkeypatch.setattr(place, networks)
