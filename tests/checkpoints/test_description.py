"""What bundle.json may say: types, sizes, and parts that fit each other."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
import tensorstore

import tiny
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.stored_tree import restore_tree
from cogview_jax.checkpoints.tree_writer import save_tree
from cogview_jax.pipeline.load import load
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_tree
from cogview_jax.runtime.sealed import SEAL, sealed
from cogview_jax.tokenizers.text import TextConfig, train_text_tokenizer

CODES = tiny.VOCABULARY.codes


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle whose parts fit each other."""
    start = tiny.start(tiny.codec_objective())
    twice = jax.tree.map(
        lambda leaf: np.concatenate([leaf] * 2) if leaf.ndim else leaf, start.model_state
    )
    codec = CodecPart(dataclasses.replace(tiny.CODEC, codebook=CODES), start.params, twice)
    captions = ["a red circle", "two blue stars"] * 3
    text = train_text_tokenizer(captions, TextConfig(pieces=290, algorithm="bpe"))
    params = tiny.start(tiny.transformer_objective()).params
    transformer = TransformerPart(tiny.TRANSFORMER, tiny.VOCABULARY, tiny.LAYOUT, params)
    path = tmp_path_factory.mktemp("written") / "bundle"
    write_bundle(path, codec=codec, text=text, transformer=transformer)
    return path


@pytest.fixture
def bundle(written, tmp_path):
    """A copy to be spoiled."""
    return shutil.copytree(written, tmp_path / "copy")


def change(bundle, changes, seal=sealed):
    """Sets "part.key.key" to values in bundle.json; with a seal that fits, as an attacker would."""
    described = json.loads((bundle / "bundle.json").read_text())
    described.pop(SEAL, None)
    for place, value in changes.items():
        *path, last = place.split(".")
        node = described["parts"]
        for key in path:
            node = node[key]
        if value is DROPPED:
            del node[last]
        else:
            node[last] = value
    (bundle / "bundle.json").write_text(json.dumps(seal(described)))


DROPPED = object()


def refused(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert [word for word in words if str(word) not in message] == [], message


def test_a_bundle_of_today_is_read_without_a_seal(bundle, written):
    assert SEAL in json.loads((written / "bundle.json").read_text())
    change(bundle, {}, seal=dict)
    assert SEAL not in json.loads((bundle / "bundle.json").read_text())
    found, expected = (Bundle(path).transformer().params for path in (bundle, written))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_bundle_with_earlier_names_of_settings_is_read(bundle, written):
    described = json.loads((bundle / "bundle.json").read_text())["parts"]
    former = {
        "transformer.config": ("init_deviation", "init_std"),
        "codec.config": ("deviation", "std"),
    }
    changes = {}
    for place, (earlier, name) in former.items():
        changes[f"{place}.{earlier}"] = described[place.split(".")[0]]["config"][name]
        changes[f"{place}.{name}"] = DROPPED
    change(bundle, changes)
    found, expected = Bundle(bundle), Bundle(written)
    assert found.transformer().config == expected.transformer().config
    assert found.codec().config == expected.codec().config
    with pytest.raises(InputError, match=r"transformer\.config\.init_deviation: no such setting"):
        change(bundle, {"transformer.config.init_std": 0.5})
        Bundle(bundle)


def test_a_flipped_bit_in_any_number_is_noticed(bundle):
    """Also where every type stays what it was, and the parts fit."""
    file = bundle / "bundle.json"
    text = file.read_text()
    digits = [i for i, letter in enumerate(text[: text.index(SEAL)]) if letter.isdigit()]
    for i in digits[::3]:
        file.write_text(text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :])
        refused(lambda: Bundle(bundle), bundle)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformer.config.width": DROPPED, "transformer.config": 3}, "transformer.config = 3"),
        ({"transformer.sha256": DROPPED}, "transformer lacks sha256"),
        ({"codec.config": DROPPED}, "codec lacks config"),
        ({"codec": [1]}, "codec = [1]: expected a section"),
        ({"text": None}, "text = None"),
        ({"text.sha256": 5}, "text.sha256 = 5: expected a text"),
        ({"transformer.config.width": "32"}, "transformer.config.width = '32'"),
        ({"transformer.config.epsilon": float("nan")}, "epsilon = nan"),
        ({"transformer.layout.grid": 2.0}, "layout.grid = 2.0"),
        ({"transformer.trained_with": {"codec": 3}}, "trained_with.codec = 3"),
        ({"transformer.positions": [13]}, "positions = [13]"),
        ({"codec.config.channels": [1, 2, 3]}, "codec channels (1, 2, 3)"),
        ({"codec.official": "x"}, "codec.official = 'x'"),
        ({"transformer.config.layers": 2**80}, "layers: a number above 2147483647"),
        ({"codec.config.mean": [2**80] * 3}, "mean[0]: a number above 2147483647"),
    ],
)
def test_types_are_checked_in_one_place(bundle, changes, words):
    change(bundle, changes)
    refused(lambda: Bundle(bundle), bundle, "is not a description of a bundle", words)


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"parts":' * 100_000, "null", '{"format": 1'])
def test_a_damaged_description_is_one_line(bundle, text):
    (bundle / "bundle.json").write_text(text)
    refused(lambda: Bundle(bundle), bundle, "is not a description of a bundle")


def test_what_another_version_says_of_a_part_is_left_alone(bundle):
    change(bundle, {"transformer.drop_captions": 0.1, "codec.unheard_of": {"a": [1]}})
    assert Bundle(bundle).parts["transformer"]["drop_captions"] == 0.1


HUGE = 10**9


@pytest.mark.parametrize(
    "place",
    [
        *("transformer.config.layers", "transformer.config.width", "transformer.vocabulary.text"),
        *("transformer.positions", "codec.config.codebook", "codec.config.channels"),
        *("codec.config.residual_blocks", "codec.config.image_size"),
    ],
)
def test_sizes_are_held_against_the_files_before_anything_is_allocated(bundle, place):
    change(bundle, {place: HUGE})
    part = place.partition(".")[0]
    refused(lambda: getattr(Bundle(bundle), part)(), bundle)


def test_parts_that_do_not_fit_are_not_loaded(bundle):
    layout = "its transformer has learned 13 positions"
    for changes, words in (
        ({"transformer.layout.text_length": 6}, layout),
        ({"transformer.layout.text_length": HUGE}, "text_length = 1000000000: expected 0 to"),
        ({"transformer.layout.grid": HUGE}, "grid = 1000000000: expected 1 to"),
        (
            {"transformer.vocabulary": {"codes": 92, "text": 1}},
            "trained on 92 codes, but its codec",
        ),
        (
            {"transformer.config.attention": "sparse", "transformer.config.pivots": 100_000},
            "100000 pivots: expected at most 65536",
        ),
    ):
        spoiled = shutil.copytree(bundle, bundle.with_name("spoiled"))
        change(spoiled, changes)
        refused(lambda spoiled=spoiled: load(spoiled), spoiled, words)
        shutil.rmtree(spoiled)


def test_a_text_tokenizer_has_the_pieces_it_is_said_to_have(bundle):
    change(bundle, {"text.pieces": 17})
    refused(Bundle(bundle).text, bundle, "pieces, but bundle.json says 17")


def test_what_file_managers_leave_is_no_damage(bundle, written):
    before = {part: Bundle(written).sha256(part) for part in ("codec", "transformer")}
    for name in (
        ".DS_Store",
        "._x",
        "Thumbs.db",
        "desktop.ini",
        ".directory",
        "d/._y",
        "a/.DS_Store",
    ):
        for folder in (bundle, bundle / "codec", bundle / "transformer"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("left")
    (bundle / "__MACOSX" / "codec").mkdir(parents=True)
    (bundle / "codec" / "__MACOSX").mkdir()
    (bundle / "codec" / "__MACOSX" / "x").write_text("left")
    load(bundle)
    assert {part: sha256_tree(bundle / part) for part in before} == before
    (bundle / "codec" / "unknown").write_text("left")
    refused(lambda: load(bundle), bundle, "codec has sha256")


@pytest.mark.parametrize("how", ["part", "file", "folder"])
def test_a_link_out_of_a_bundle_is_not_followed(bundle, how):
    """What it leads to is the very part, moved."""
    codec = bundle / "codec"
    moved = {"part": codec, "file": codec / "_METADATA", "folder": codec / "d"}[how]
    shutil.move(moved, bundle.parent / "outside")
    moved.symlink_to(bundle.parent / "outside")
    refused(lambda: load(bundle), bundle, "leads out of this folder")


def test_a_pipe_in_a_bundle_is_not_waited_for(bundle):
    (bundle / "text.model").unlink()
    os.mkfifo(bundle / "text.model")
    refused(lambda: load(bundle), "text.model")
    os.mkfifo(bundle / "codec" / "pipe")
    refused(Bundle(bundle).codec, "pipe: expected a file or a folder")


def array(path, name, **metadata):
    """Overwrites what a tree says of one of its arrays, as nobody but an attacker does."""
    store = {"driver": "ocdbt", "base": f"file://{path}/"}
    spec = {"driver": "zarr", "kvstore": store | {"path": f"{name}/"}, "dtype": "float32"}
    spec["metadata"] = metadata
    tensorstore.open(spec, create=True, delete_existing=True).result()


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"shape": [10**6, 10**6], "chunks": [10, 10]}, "its arrays take 4000000000000 bytes"),
        ({"shape": [8, 4], "chunks": [10**5, 10**5]}, "kept in pieces of (100000, 100000)"),
    ],
    ids=["shape", "chunks"],
)
def test_an_array_larger_than_its_file_can_be_is_not_read(tmp_path, metadata, words):
    save_tree(tmp_path / "x", {"a": np.zeros((8, 4), np.float32)})
    array(tmp_path / "x", "a", **metadata)
    shapes = {"a": jax.ShapeDtypeStruct(metadata["shape"], "float32")}
    refused(lambda: restore_tree(tmp_path / "x", shapes), words)


@pytest.mark.parametrize("key", ["../../a", "/a", "..", "", 5])
def test_an_array_whose_name_is_a_path_is_not_opened(tmp_path, key):
    save_tree(tmp_path / "x", {"a": np.zeros((8, 4), np.float32)})
    text = (tmp_path / "x" / "_METADATA").read_text()
    changed = text.replace('"key": "a"', f'"key": {json.dumps(key)}')
    (tmp_path / "x" / "_METADATA").write_text(changed)
    shapes = {"a": jax.ShapeDtypeStruct((8, 4), "float32")}
    refused(lambda: restore_tree(tmp_path / "x", shapes), "which is no name")
