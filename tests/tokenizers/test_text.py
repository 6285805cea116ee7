"""The text tokenizer: what goes in comes out, and what cannot be trained or read says so."""

import json
import subprocess
import sys
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
        assert tokenizer.text_tokens(case["text"]) == case["pieces"]
        assert tokenizer.decode(pieces) == case["decoded"]


def test_without_byte_fallback_other_characters_are_one_unknown_piece():
    config = TextConfig(80, byte_fallback=False)
    tokenizer = train_text_tokenizer(CAPTIONS, config)
    assert len(tokenizer) <= 80  # with it, 256 would be bytes
    text = "a small red circle"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    zebra, quagga = tokenizer.encode("龘"), tokenizer.encode("靐")
    assert zebra == quagga
    assert "龘" not in tokenizer.decode(zebra)


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_what_a_tokenizer_was_not_trained_for_is_a_share_of_characters(byte_fallback):
    config = TextConfig(400, character_coverage=1.0, byte_fallback=byte_fallback)
    tokenizer = train_text_tokenizer(["a red fox", "two red cats on a mat"] * 9, config)
    assert tokenizer.unknown_share(["a red fox", "on two mats"]) == 0
    assert tokenizer.unknown_share(["红狐狸", "éé"]) == 1
    # Nine letters and three characters, of which one is beyond 16 bits.
    assert tokenizer.unknown_share(["red fox 𠮷狐", "cat 狸"]) == 3 / 12
    assert tokenizer.unknown_share([]) == tokenizer.unknown_share([" "]) == 0


SOME = ["a red cat on a mat", "two blue dogs"] * 5


@pytest.mark.parametrize(
    ("captions", "settings", "message"),
    [
        (["word " * 2000] * 3, {}, "each of the 3 captions is longer than 4192 bytes"),
        (["圆" * 1500], {}, "each of the 1 captions is longer than 4192 bytes"),
        (["\u200b"] * 9, {}, "on 9 captions: no character is left of them"),
        (["a \udce9 b"], {}, r"the caption 'a \\udce9 b' is no Unicode: surrogates not allowed"),
        (
            SOME,
            {"pieces": 100},
            r"data.text.pieces = 100, but single characters take 275: raise it \(and"
            r" vocabulary.text\), lower data.text.character_coverage \(0.9995, at least 0.98\), or"
            " do without the 256 of data.text.byte_fallback$",
        ),
        (SOME, {"pieces": 10, "byte_fallback": False}, r"take 19: raise it .* at least 0.98\)$"),
        (SOME, {"pieces": 0}, "pieces = 0: expected 4 to"),
        (SOME, {"character_coverage": 0.5}, "character_coverage = 0.5: expected 0.98 to 1"),
    ],
    ids=repr,
)
def test_why_none_can_be_trained_is_said_in_our_words(captions, settings, message):
    with pytest.raises(InputError, match=message):
        train_text_tokenizer(captions, TextConfig(**{"pieces": 400} | settings))


def test_captions_that_are_left_out_are_counted(capfd):
    # The limit is in bytes: 1,398 characters of three bytes more than reach it.
    tokenizer = train_text_tokenizer([*SOME, "圆" * 1397, "方" * 1398], TextConfig(400))
    assert tokenizer.text_tokens("圆")[-1].endswith("圆")
    assert tokenizer.text_tokens("方")[-1].startswith("<0x")
    assert capfd.readouterr().err == (
        "text tokenizer: 1 of 12 captions are longer than 4192 bytes and are left out of its"
        " training\n"
    )


def test_another_process_trains_the_same_bytes(root):
    program = (
        "from cogview_jax.tokenizers.text import *\n"
        f"print(train_text_tokenizer({CAPTIONS!r}, TextConfig(420)).sha256)"
    )
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert told.strip() == train_text_tokenizer(CAPTIONS, TextConfig(420)).sha256
