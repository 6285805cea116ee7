"""The text tokenizer: what goes in comes out, and what cannot be trained or read says so."""

import json
import unicodedata

import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.text import TextConfig, TextTokenizer, train_text_tokenizer

CAPTIONS = [
    f"a {size} {colour} {shape}{end}"
    for size in ("small", "large")
    for colour in ("red", "green", "dark blue")
    for shape in ("circle", "square", "star")
    for end in ("", " on a white background", "，一个红色的圆形", "。白色背景")
]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_text_tokenizer(CAPTIONS, TextConfig(420, request.param))


@pytest.mark.parametrize(
    "text",
    [
        "a small red circle on a white background",
        "an unseen Zebra, (crossing) 42 roads!",
        "一个红色的圆形",
        "龘靐齉 未见过的字",
        "a red 🟥 and 🐕‍🦺 naïve café",
        "Ωμέγα и кириллица",
    ],
)
def test_round_trip(tokenizer, text):
    """Up to the compatibility forms of Unicode; characters without a piece go through bytes."""
    pieces = tokenizer.encode(text)
    assert all(0 <= piece < len(tokenizer) for piece in pieces)
    assert tokenizer.decode(pieces) == unicodedata.normalize("NFKC", text)


def test_seen_words_are_shorter_than_their_bytes(tokenizer):
    text = "a small red circle，一个红色的圆形"
    assert len(tokenizer.encode(text)) < len(text.encode()) / 2


def test_blank_text_has_no_pieces(tokenizer):
    assert [tokenizer.encode(text) for text in ("", " ", " \t\n ")] == [[], [], []]


def test_training_is_deterministic_and_the_file_is_the_tokenizer(tokenizer, tmp_path):
    again = train_text_tokenizer(iter(CAPTIONS), TextConfig(420, "bpe"))
    assert again.model == train_text_tokenizer(CAPTIONS, TextConfig(420, "bpe")).model
    tokenizer.save(tmp_path / "text.model")
    loaded = TextTokenizer.load(str(tmp_path / "text.model"))
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.encode(CAPTIONS[5]) == tokenizer.encode(CAPTIONS[5])
    assert [path.name for path in tmp_path.iterdir()] == ["text.model"]


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_small_data_gives_as_many_pieces_as_it_can(algorithm):
    small = train_text_tokenizer(["a red circle", "  "], TextConfig(50_000, algorithm))
    assert 256 < len(small) < 400
    assert small.decode(small.encode("two blue 星")) == "two blue 星"


@pytest.mark.parametrize("captions", [[], ["", "  ", "\n"]])
def test_without_captions_there_is_nothing_to_train_on(captions):
    with pytest.raises(InputError, match="there are no captions"):
        train_text_tokenizer(captions, TextConfig())


@pytest.mark.parametrize("pieces", [10, 260])
def test_fewer_pieces_than_characters_are_refused(pieces):
    with pytest.raises(InputError, match=f"of {pieces} pieces .* on 72 captions: .+") as error:
        train_text_tokenizer(CAPTIONS, TextConfig(pieces))
    assert "\n" not in str(error.value)


def test_garbage_is_no_tokenizer(tokenizer, tmp_path):
    for model in (b"", b"garbage", b"\x00" * 100, tokenizer.model[: len(tokenizer.model) // 2]):
        with pytest.raises(InputError, match="not a readable SentencePiece model"):
            TextTokenizer(model)
    with pytest.raises(InputError, match=r"no text tokenizer at .*missing\.model"):
        TextTokenizer.load(tmp_path / "missing.model")


def test_official_model_gives_the_official_ids(fixtures, official_text):
    tables = json.loads((fixtures / "tokens.json").read_text("utf-8"))
    tokenizer = TextTokenizer.load(official_text)
    assert len(tokenizer) == tables["text_vocab"]
    assert tokenizer.sha256 == tables["sentencepiece_model_sha256"]
    unknown = tables["sentencepiece_special"]["unk"]
    assert tokenizer.decode([unknown]) == " ⁇ "
    for case in tables["encodings"]:
        pieces = tokenizer.encode(case["text"])
        assert [piece + tables["img_vocab"] for piece in pieces] == case["ids"]
        assert tokenizer.written(case["text"]) == case["pieces"]
        assert tokenizer.decode(pieces) == case["decoded"]
