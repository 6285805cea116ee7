"""A bundle, a server, and a cache of its own for each test; pauses cost no time."""

import pytest

import reference
import tiny
from cogview_jax.checkpoints import copied_bundles
from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.remote_bundle import bundle_copy
from cogview_jax.data.remote import failures, files
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import make_layout
from file_server import FileServer
from served_bundles import Bucket


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder of a bundle with one part."""
    folder = tmp_path_factory.mktemp("written") / "model"
    positions = make_layout(tiny.LAYOUT, tiny.VOCABULARY).positions
    model = Transformer(tiny.TRANSFORMER, tiny.VOCABULARY.size, positions)
    params = reference.random_like(unbox(transformer_shapes(model)), 0)
    part = TransformerPart(tiny.TRANSFORMER, tiny.VOCABULARY, tiny.LAYOUT, params)
    write_bundle(folder, transformer=part)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / copied_bundles.FOLDER


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with FileServer(tmp_path / "served") as server:
        yield server


@pytest.fixture(autouse=True)
def _alone(cache, server, monkeypatch):
    for name in ("HF_TOKEN", copied_bundles.LIMIT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(failures, "PAUSES", (0.001,) * len(failures.PAUSES))
    bundle_copy.cache_clear()
    yield
    bundle_copy.cache_clear()


@pytest.fixture
def bucket(bundle, monkeypatch):
    bucket = Bucket(bundle, "gs://bucket/sets/model")
    monkeypatch.setattr(files, "file_system", lambda name: bucket)
    return bucket
