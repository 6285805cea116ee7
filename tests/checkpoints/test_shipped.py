"""Bundles by name, and adapters whose base is one of them."""

import dataclasses

import jax
import numpy as np
import pytest

import reference
import tiny
from cogview_jax.checkpoints import shipped
from cogview_jax.checkpoints.adapter import write_adapter
from cogview_jax.checkpoints.bundle import Bundle, identity
from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.step_bundle import is_bundle, located, open_bundle
from cogview_jax.interop.adapter_merge import merge_adapter
from cogview_jax.models.lora import LoRAConfig, adapter_shapes
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import make_layout

LORA = LoRAConfig(rank=2, alpha=5.0, targets=("qkv", "mlp.down"))


def transformer(seed):
    positions = make_layout(tiny.LAYOUT, tiny.VOCABULARY).positions
    model = Transformer(tiny.TRANSFORMER, tiny.VOCABULARY.size, positions)
    params = reference.random_like(unbox(transformer_shapes(model)), seed)
    return TransformerPart(tiny.TRANSFORMER, tiny.VOCABULARY, tiny.LAYOUT, params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A package with the bundle `base` and the adapter `said` of it, which captions images."""
    folder = tmp_path_factory.mktemp("assets")
    part = transformer(0)
    write_bundle(folder / "base", transformer=part)
    write_adapter(
        folder / "said",
        reference.random_like(adapter_shapes(part.params, LORA), 1),
        LORA,
        dataclasses.replace(part, layout=dataclasses.replace(tiny.LAYOUT, task="caption")),
        base=Bundle(folder / "base").sha256("transformer"),
        base_path="/somewhere/else",
        step=7,
    )
    return folder


@pytest.fixture(autouse=True)
def package(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_name_is_a_folder_that_is_there_or_else_a_shipped_bundle(package, tmp_path):
    assert located("base") == str(package / "base")
    assert is_bundle("base")
    assert is_bundle("said")
    assert not is_bundle("bass")
    (tmp_path / "base").mkdir()
    assert not is_bundle("base")
    with pytest.raises(InputError, match=rf"{tmp_path}/base is no bundle, and hides the shipped"):
        open_bundle("base")
    with pytest.raises(InputError, match=r"no shipped bundle 'bass', and no such folder; .*base"):
        open_bundle("bass")
    with pytest.raises(InputError, match="runs/base is no bundle"):
        open_bundle("runs/base")


def test_an_adapter_of_a_shipped_bundle_reads_as_the_bundle_that_it_is_merged_into(package):
    merge_adapter(str(package / "said"), "base", "merged")
    merged, adapted = Bundle("merged"), open_bundle("said")
    assert (adapted.step, list(adapted.parts)) == (7, ["transformer"])
    there, here = merged.transformer(), adapted.transformer()
    assert here.layout.task == there.layout.task == "caption"
    jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
    jax.tree.map(
        np.testing.assert_array_equal,
        adapted.layered_transformer(dtype=np.float16).params,
        merged.layered_transformer(dtype=np.float16).params,
    )
    assert adapted.stored_type("transformer") == np.float32
    # Its hash is neither that of its base nor that of another adapter.
    assert adapted.sha256("transformer") != Bundle(package / "base").sha256("transformer")
    assert identity(adapted.path) != identity(package / "base")


def test_an_adapter_of_another_base_says_how_it_becomes_a_bundle(package, tmp_path):
    part = transformer(5)
    adapters = reference.random_like(adapter_shapes(part.params, LORA), 1)
    # The base that it names is not opened: the user did not name it.
    write_bundle(tmp_path / "other", transformer=part)
    base = Bundle(tmp_path / "other").sha256("transformer")
    where = tmp_path / "adapter"
    write_adapter(where, adapters, LORA, part, base=base, base_path=str(tmp_path / "other"), step=7)
    with pytest.raises(InputError, match=rf"adapter of transformer {base[:12]}, which no shipped"):
        open_bundle(where)
