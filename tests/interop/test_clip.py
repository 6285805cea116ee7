"""CLIP in the folders of transformers: tokens, what is read, and what is refused in one line."""

import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest

import clip_folder
from cogview_jax.evaluation.clip_model import ClipModel
from cogview_jax.interop import clip
from cogview_jax.interop.clip import read_clip
from cogview_jax.interop.clip_text import ClipTokenizer
from cogview_jax.interop.rules import tensor_sources
from cogview_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def facts(oracles):
    return clip_folder.read_facts(oracles)


@pytest.fixture(scope="module")
def tokenizer(oracles):
    return ClipTokenizer.read(oracles("clip/vocab.json").parent)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def refused(words, read, *arguments):
    with pytest.raises(InputError) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    assert words in str(error.value)


# ---- tokens


def test_tokens_equal_those_of_transformers(facts, tokenizer):
    assert len(facts["captions"]) >= 40
    wrong = [text for text, ids in facts["captions"] if tokenizer.tokens(text) != ids]
    assert wrong == []


def test_tokens_are_padded_and_cut(oracles, facts, tokenizer):
    expected = np.load(oracles("clip/a.npz"))["ids"]
    np.testing.assert_array_equal(tokenizer(facts["texts"]), expected, strict=True)
    short = tokenizer(["a a a", "a"], length=4)
    a = tokenizer.vocabulary["a</w>"]
    start, end = tokenizer.vocabulary["<|startoftext|>"], tokenizer.vocabulary["<|endoftext|>"]
    assert short.tolist() == [[start, a, a, end], [start, a, end, end]]


def test_merges_by_hand(tokenizer):
    symbols = {token: i for token, i in tokenizer.vocabulary.items() if len(token) == 1}
    symbols |= {f"{token}</w>": tokenizer.vocabulary[f"{token}</w>"] for token in symbols}
    specials = {"<|startoftext|>": 900, "<|endoftext|>": 901}
    merges = [("b", "c"), ("a", "b"), ("a", "a"), ("aa", "a</w>"), ("bc", "bc")]
    made = {first + second: 1000 + i for i, (first, second) in enumerate(merges)}
    own = ClipTokenizer(symbols | specials | made, merges)
    names = {i: token for token, i in own.vocabulary.items()}
    words = [[names[i] for i in own.tokens(text)[1:-1]] for text in ("abc", "aaa", "bcbcx", "aaaa")]
    # "bc" comes first, and its end is another symbol: "abc" ends in "c</w>", which no merge has.
    assert words[0] == ["ab", "c</w>"]
    assert words[1] == ["aaa</w>"]
    assert words[2] == ["bcbc", "x</w>"]
    assert words[3] == ["aa", "a", "a</w>"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("vocab.json", lambda text: text.replace("<|endoftext|>", "<|end|>"), "'<|endoftext|>'"),
        ("vocab.json", lambda text: text.replace('"a</w>"', '"b@"'), "lacks the token 'a</w>'"),
        ("vocab.json", lambda text: text.replace(": 0,", ": -1,"), "an object of tokens and ids"),
        ("vocab.json", lambda text: text[:100], "not readable as JSON"),
        ("merges.txt", lambda text: text + "q q\n", "vocab.json lacks the token 'qq'"),
        ("merges.txt", lambda text: text + "abc\n", "'abc' is no pair of symbols"),
        ("merges.txt", None, "no merges.txt in"),
    ],
)
def test_a_tokenizer_that_is_none(tmp_path, oracles, name, change, words):
    for each in ("vocab.json", "merges.txt"):
        text = oracles(f"clip/{each}").read_text(encoding="utf-8")
        if each != name or change is not None:
            text = change(text) if each == name else text
            (tmp_path / each).write_text(text, encoding="utf-8")
    refused(words, ClipTokenizer.read, tmp_path)


# ---- a model from a folder


def test_embeddings_of_a_folder(tmp_path, oracles, facts):
    folder = clip_folder.write_folder(tmp_path / "a", oracles)
    model, expected = (
        ClipModel.read(folder / "model.safetensors", 3),
        np.load(oracles("clip/a.npz")),
    )
    images = [expected[f"image{i}"] for i in range(len(expected["image_embeds"]))]
    found = model.images(iter(images)), model.texts(facts["texts"])
    for embeddings, name in zip(found, ("image_embeds", "text_embeds"), strict=True):
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(embeddings, unit(expected[name]), rtol=0, atol=1e-5)
    assert model.texts([]).shape == (0, 32)
    content = (folder / "model.safetensors").read_bytes()
    assert model.sha256 == hashlib.sha256(content).hexdigest()


def test_names_and_shapes_of_the_default_size(facts):
    wanted = facts["default_shapes"]
    sizes = clip._Text(), clip._Image()
    found = tensor_sources(clip.TEXT_RULES, clip.text_shapes(sizes[0], 512))
    found |= tensor_sources(clip.IMAGE_RULES, clip.image_shapes(sizes[1], 512))
    shapes = {name: list(source.shape) for name, source in found.items()}
    assert shapes | {"logit_scale": []} == wanted
    assert (sizes[0].num_attention_heads, sizes[1].num_attention_heads) == (8, 12)


def test_older_files_and_other_types(tmp_path, oracles, facts):
    state = {
        name: array.astype(ml_dtypes.bfloat16)
        for name, array in clip_folder.state_of(facts, "b").items()
    }
    state["text_model.embeddings.position_ids"] = np.arange(20)[None]
    state["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    config = facts["models"]["b"]["config"]
    older = {**config, "text_config": None, "text_config_dict": config["text_config"]}
    weights = read_clip(
        clip_folder.write_folder(tmp_path / "b", oracles, state=state, config=older)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {np.dtype("float32")}
    fc1 = "vision_model.encoder.layers.1.mlp.fc1.weight"
    kernel = weights.image["layers"]["expand"]["kernel"][1]
    np.testing.assert_array_equal(kernel, state[fc1].astype(np.float32).T)
    assert (weights.config.text.epsilon, weights.config.image.epsilon) == (1e-3, 1e-2)
    assert (weights.config.text.num_heads, weights.config.image.num_heads) == (2, 5)
    assert weights.config.text.activation == "gelu"
    assert weights.config.end_token == 17


Q1 = "text_model.encoder.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(Q1), f"(text tower) lacks {Q1}"),
        (lambda s: s.pop("visual_projection.weight"), "(image tower) lacks visual_projection"),
        (lambda s: s.pop("logit_scale"), "lacks logit_scale"),
        (lambda s: s.update({"head.bias": np.zeros(3)}), "has head.bias, which no rule knows"),
        (lambda s: s.update({Q1: s[Q1][:, 1:]}), "has shape [24, 23], expected [24, 24]"),
        (lambda s: s.update({Q1: s[Q1].astype(np.int32)}), f"{Q1} is int32, expected one of"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, oracles, facts, change, words):
    state = clip_folder.state_of(facts, "b")
    change(state)
    refused(words, read_clip, clip_folder.write_folder(tmp_path, oracles, "b", state=state))


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        (None, "model_type", "siglip", "model_type = 'siglip', expected 'clip'"),
        (None, "projection_dim", 21, "has shape [20, 30], expected [21, 30]"),
        (None, "projection_dim", "20", "projection_dim = '20'"),
        (None, "text_config", 3, "text_config is no section"),
        ("text_config", "hidden_act", "gelu_new", "text_config.hidden_act"),
        ("text_config", "num_attention_heads", 7, "24 is no multiple of num_attention_heads = 7"),
        ("text_config", "num_hidden_layers", 3, "(text tower) has text_model.encoder.layers.3."),
        ("text_config", "num_hidden_layers", 10**9, "fewer arrays than config.json says"),
        ("text_config", "eos_token_id", 60, "eos_token_id = 60: expected"),
        ("vision_config", "patch_size", 24, "is larger than image_size = 23"),
        ("vision_config", "image_size", 29, "has shape [17, 30], expected [26, 30]"),
        ("vision_config", "num_hidden_layers", 0, "num_hidden_layers = 0: expected at least 1"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, oracles, facts, section, name, value, words):
    config = facts["models"]["b"]["config"]
    config = json.loads(json.dumps(config))
    (config[section] if section else config)[name] = value
    refused(words, read_clip, clip_folder.write_folder(tmp_path, oracles, "b", config=config))


def test_folders_that_are_none(tmp_path, oracles):
    refused("expected model.safetensors and config.json", read_clip, tmp_path / "absent")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused("pytorch_model.bin is a pickle, which is not read", read_clip, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    refused("no config.json beside model.safetensors", read_clip, tmp_path)
    folder = clip_folder.write_folder(tmp_path / "a", oracles)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused("is no safetensors file", read_clip, folder)
    split = tmp_path / "split"
    split.mkdir()
    (split / "model.safetensors.index.json").write_text("{}")
    refused("weights in several files are not read", read_clip, split)


def test_a_tokenizer_of_another_model(tmp_path, oracles, facts):
    folder = clip_folder.write_folder(tmp_path / "b", oracles, "b")
    refused("vocab.json has the id 933, but model.safetensors has 60", ClipModel.read, folder)
    config = json.loads(json.dumps(facts["models"]["a"]["config"]))
    config["text_config"]["eos_token_id"] = 900
    folder = clip_folder.write_folder(tmp_path / "a", oracles, config=config)
    refused("end token 933: expected 900 by eos_token_id = 900", ClipModel.read, folder)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["<|endoftext|>"], vocabulary["<|startoftext|>"] = 932, 933
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(facts["models"]["a"]["config"]))
    refused("end token 932: expected the largest id, 933,", ClipModel.read, folder)
