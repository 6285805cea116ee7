"""CLIP on several devices: every image and text has the embedding that one device gives it."""

import jax
import numpy as np
import pytest

import clip_folder
from cogview_jax.evaluation.clip_model import ClipModel
from cogview_jax.interop.clip import read_clip
from cogview_jax.interop.clip_text import ClipTokenizer
from cogview_jax.models.networks.clip import (
    clip_pixels,
    image_embeddings,
    normalise,
    text_embeddings,
)


@pytest.fixture(scope="module")
def folder(oracles, tmp_path_factory):
    return clip_folder.write_folder(tmp_path_factory.mktemp("clip") / "a", oracles)


def test_eight_devices_give_the_embeddings_of_one(folder):
    model = ClipModel.read(folder, 3)
    assert model.batch_size == len(jax.local_devices()) == 8
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (30 + i, 41, 3), np.uint8) for i in range(11)]
    texts = [f"a red circle {'and a cat ' * i}" for i in range(11)]
    one = jax.device_put(read_clip(folder), jax.devices()[0])
    pixels = np.stack([clip_pixels(image, one.config.image_size) for image in images])
    ids = ClipTokenizer.read(folder)(texts, min(77, one.max_tokens))
    for found, expected in (
        (model.images(images), image_embeddings(one, pixels)),
        (model.texts(texts), text_embeddings(one, np.asarray(ids))),
    ):
        np.testing.assert_allclose(found, normalise(expected), rtol=0, atol=1e-6)


def test_each_device_computes_its_share_of_a_batch(folder, monkeypatch):
    """The weights lie on all devices, and a batch is split over them."""
    model, seen = ClipModel.read(folder, 16), []

    def embed(weights, batch):
        seen.append((weights, batch))
        return image_embeddings(weights, batch)

    monkeypatch.setattr("cogview_jax.evaluation.clip_model.image_embeddings", embed)
    model.images([np.zeros((32, 32, 3), np.uint8)] * 3)
    ((weights, batch),) = seen
    assert [shard.data.shape[0] for shard in batch.addressable_shards] == [2] * 8
    assert all(len(array.sharding.device_set) == 8 for array in jax.tree.leaves(weights))
    computed = image_embeddings(weights, batch)
    assert [shard.data.shape[0] for shard in computed.addressable_shards] == [2] * 8
