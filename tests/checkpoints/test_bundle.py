"""Bundles: what was written comes back, and nothing that does not belong together is read."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file, sha256_tree
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.sampling.options import SamplingSettings
from cogview_jax.tokenizers.text import TextConfig, train_text_tokenizer

CAPTIONS = ["a large red circle", "two small blue stars", "a ring above a heart"]


def codec_part(scale=1.0):
    start = tiny.start(tiny.codec_objective())
    params = jax.tree.map(lambda leaf: scale * leaf, start.params)
    return CodecPart(tiny.CODEC, params, start.model_state)


@pytest.fixture(scope="module")
def text():
    return train_text_tokenizer(CAPTIONS * 3, TextConfig(pieces=300, algorithm="bpe"))


@pytest.fixture(scope="module")
def transformer():
    params = tiny.start(tiny.transformer_objective()).params
    return TransformerPart(tiny.TRANSFORMER, tiny.VOCABULARY, tiny.LAYOUT, params)


@pytest.fixture(scope="module")
def written(tmp_path_factory, text, transformer):
    path = tmp_path_factory.mktemp("written") / "bundle"
    write_bundle(path, codec=codec_part(), text=text, transformer=transformer)
    return path


@pytest.fixture
def bundle(written, tmp_path):
    """A copy to be spoiled, elsewhere than it was written."""
    return shutil.copytree(written, tmp_path / "copy")


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


def test_all_parts_come_back_from_a_copy(bundle, written, text, transformer):
    shutil.move(written, written.with_name("gone"))
    try:
        opened = Bundle(bundle)
        codec, model = opened.codec(), opened.transformer()
        assert (codec.config, opened.text().model) == (tiny.CODEC, text.model)
        assert_equal(codec.params, codec_part().params)
        assert_equal(codec.codebook, codec_part().codebook)
        assert (model.config, model.vocabulary) == (tiny.TRANSFORMER, tiny.VOCABULARY)
        assert model.layout == tiny.LAYOUT
        assert_equal(model.params, transformer.params)
    finally:
        shutil.move(written.with_name("gone"), written)


def test_description_names_every_part_by_the_hash_of_its_files(bundle):
    described = json.loads((bundle / "bundle.json").read_text())
    assert described["format"] == 1
    hashes = {name: part["sha256"] for name, part in described["parts"].items()}
    assert hashes == {
        "codec": sha256_tree(bundle / "codec"),
        "text": sha256_file(bundle / "text.model"),
        "transformer": sha256_tree(bundle / "transformer"),
    }
    trained_with = described["parts"]["transformer"]["trained_with"]
    assert trained_with == {name: hashes[name] for name in ("codec", "text")}
    assert sorted(path.name for path in bundle.iterdir()) == [
        *("bundle.json", "codec", "text.model", "transformer")
    ]


def test_a_transformer_is_read_onto_a_mesh_and_in_another_type(bundle, transformer):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    params = Bundle(bundle).transformer(mesh, jnp.bfloat16).params
    table = params["word_embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(128 // 2, 32 // 4)}
    assert_equal(params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), transformer.params))


def test_parameters_keep_the_type_they_were_written_in(transformer, tmp_path):
    """float16 on disk, float32 where nothing else is asked for."""
    halved = jax.tree.map(lambda leaf: leaf.astype(np.float16), transformer.params)
    deferred = jax.tree.map(lambda x: Deferred(x.shape, x.dtype, lambda: x), halved)
    for name, params in (("whole", halved), ("deferred", deferred)):
        part = dataclasses.replace(transformer, params=params)
        write_bundle(tmp_path / name, transformer=part)
        found = Bundle(tmp_path / name)
        stored = found.stored_transformer()
        assert (stored.config, stored.layout) == (tiny.TRANSFORMER, tiny.LAYOUT)
        assert stored.model == found.transformer().model
        as_stored = jax.tree.map(lambda leaf: leaf.make(), stored.params)
        assert {leaf.dtype for leaf in jax.tree.leaves(as_stored)} == {np.dtype("float16")}
        assert_equal(as_stored, halved)
        read = found.transformer().params
        assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype("float32")}
        assert_equal(read, jax.tree.map(lambda leaf: leaf.astype(np.float32), halved))


def test_a_codec_is_given_as_it_lies(bundle):
    stored = Bundle(bundle).stored_codec()
    assert stored.config == tiny.CODEC
    found = jax.tree.map(lambda leaf: leaf.make(), (stored.params, stored.codebook))
    assert_equal(found, (codec_part().params, codec_part().codebook))


def test_what_is_recorded_of_official_files_stays_with_the_part(tmp_path, transformer):
    record = {"prefix": "module."}
    write_bundle(tmp_path / "one", codec=codec_part(), official={"codec": record})
    write_bundle(tmp_path / "two", codec=Bundle(tmp_path / "one"), transformer=transformer)
    two = Bundle(tmp_path / "two")
    assert (two.official("codec"), two.official("transformer")) == (record, {})


@pytest.mark.parametrize("share", [None, 0.0, 0.25])
def test_a_transformer_says_how_often_it_learned_without_captions(tmp_path, transformer, share):
    part = dataclasses.replace(transformer, drop_captions=share)
    write_bundle(tmp_path / "b", transformer=part)
    assert Bundle(tmp_path / "b").transformer().drop_captions == share
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())["parts"]["transformer"]
    assert described.get("drop_captions") == share


@pytest.mark.parametrize("given", [{}, {"temperature": 0.0}, {"top_k": 7, "guidance": 2.0}])
def test_a_transformer_says_how_it_is_best_sampled(tmp_path, transformer, given):
    part = dataclasses.replace(transformer, sampling=SamplingSettings(**given))
    write_bundle(tmp_path / "b", transformer=part)
    assert Bundle(tmp_path / "b").transformer().sampling == SamplingSettings(**given)
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())["parts"]["transformer"]
    assert described.get("sampling", {}) == given


@pytest.mark.parametrize("prompts", [(), ("a red circle", "两个黄色圆环")])
def test_a_transformer_names_examples_of_prompts(tmp_path, transformer, prompts):
    write_bundle(tmp_path / "b", transformer=dataclasses.replace(transformer, prompts=prompts))
    assert Bundle(tmp_path / "b").described_transformer().prompts == prompts
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())["parts"]["transformer"]
    assert described.get("prompts", []) == list(prompts)


def test_a_codec_is_read_onto_a_mesh(bundle):
    codec = Bundle(bundle).codec(make_mesh(MeshConfig(data=1, fsdp=8)))
    kernel = codec.params["encoder_convs_0"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 4, 3, 16 // 8)}
    assert_equal(codec.params, codec_part().params)


def test_a_copied_codec_keeps_its_hash_and_may_stand_alone(bundle, tmp_path):
    source = Bundle(bundle)
    write_bundle(tmp_path / "alone", codec=source)
    alone = Bundle(tmp_path / "alone")
    assert list(alone.parts) == ["codec"]
    assert alone.sha256("codec") == source.sha256("codec")
    assert_equal(alone.codec().params, codec_part().params)
    for read in (alone.text, alone.transformer):
        with pytest.raises(InputError, match=r"alone has no (text|transformer); it has codec$"):
            read()


def test_writing_replaces_a_bundle_and_leaves_nothing_beside_it(bundle, text):
    write_bundle(bundle, text=text)
    assert list(Bundle(bundle).parts) == ["text"]
    assert [path.name for path in bundle.parent.iterdir()] == ["copy"]


def test_a_damaged_part_is_not_copied_and_the_old_bundle_stays(bundle, transformer):
    damaged = Bundle(shutil.copytree(bundle, bundle.with_name("damaged")))
    (damaged.path / "codec" / "_METADATA").write_text("{}")
    before = sha256_tree(bundle)
    refused(lambda: write_bundle(bundle, codec=damaged, transformer=transformer), damaged.path)
    assert sha256_tree(bundle) == before


def spoil(bundle, **changes):
    described = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(described | changes))


def refused(call, *words):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if str(word) not in message] == [], message


def test_an_exchanged_codec_is_refused_and_both_are_named(bundle, tmp_path):
    write_bundle(tmp_path / "other", codec=codec_part(scale=2.0))
    other, own = Bundle(tmp_path / "other"), Bundle(bundle)
    shutil.rmtree(bundle / "codec")
    shutil.copytree(tmp_path / "other" / "codec", bundle / "codec")
    both = other.sha256("codec")[:12], own.sha256("codec")[:12]
    refused(own.codec, bundle, *both, "its transformer was trained with", "exchanged")

    # Also where the description was exchanged with it.
    parts = own.description["parts"] | {"codec": other.parts["codec"]}
    spoil(bundle, parts=parts)
    refused(lambda: Bundle(bundle), bundle, *both, "its transformer was trained with codec")


def test_an_exchanged_text_tokenizer_is_refused(bundle, text):
    other = train_text_tokenizer(CAPTIONS * 3, TextConfig(pieces=290, algorithm="bpe"))
    (bundle / "text.model").write_bytes(other.model)
    refused(Bundle(bundle).text, bundle, other.sha256[:12], text.sha256[:12], "text.model")


def test_a_flipped_bit_is_found(bundle):
    opened = Bundle(bundle)
    file = max((bundle / "transformer").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused(opened.transformer, bundle, "transformer has sha256", "damaged or exchanged")
    opened.codec()


def test_a_missing_part_is_named(bundle):
    shutil.rmtree(bundle / "transformer")
    refused(Bundle(bundle).transformer, bundle, "lacks transformer, which bundle.json lists")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 2, "parts": {}}', "has bundle format 2; this program reads 1"),
        ('{"format": 1}', "is not a description of a bundle: it lacks parts"),
        ('{"format": 1, "parts": {"co', "is not a description of a bundle"),
        ('["codec"]', "is not a description of a bundle"),
    ],
)
def test_a_description_that_cannot_be_read_is_refused(bundle, content, message):
    (bundle / "bundle.json").write_text(content)
    refused(lambda: Bundle(bundle), bundle, message)


def test_a_setting_this_program_does_not_know_is_named(bundle):
    parts = json.loads((bundle / "bundle.json").read_text())["parts"]
    parts["codec"]["config"]["gain"] = 3
    spoil(bundle, parts=parts)
    refused(lambda: Bundle(bundle), bundle, "codec.config.gain: kind 'vqvae' has no such setting")


def test_what_is_no_bundle_is_refused(tmp_path):
    refused(lambda: Bundle(tmp_path / "none"), tmp_path / "none", "is no bundle")
    refused(lambda: Bundle(tmp_path), "there is no bundle.json in it")
