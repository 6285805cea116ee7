"""The numbers of the released vocabulary, and of smaller ones."""

import json

import numpy as np
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.vocabulary import COMMANDS, Vocabulary, token_ids


def test_numbers_of_the_paper():
    vocabulary = Vocabulary()
    assert vocabulary.size == 58240
    assert vocabulary.text_start == 8192
    assert vocabulary.commands_start == 58192
    assert [vocabulary.command(name) for name in COMMANDS] == list(range(58192, 58219))
    named = {"PAD": 58192, "BOI1": 58193, "EOI1": 58196, "ROI1": 58199, "BASE": 58208}
    assert {name: vocabulary.command(name) for name in named} == named


@pytest.mark.parametrize(
    ("codes", "text", "size"),
    [(64, 270, 384), (512, 512, 1152), (1, 100, 128), (1, 101, 256), (8192, 50000, 58240)],
)
def test_sizes_are_padded_to_a_multiple_of_128(codes, text, size):
    vocabulary = Vocabulary(codes, text)
    assert vocabulary.size == size
    assert vocabulary.command("PAD") == codes + text


def test_ids_are_those_of_the_official_tokenizer(fixtures):
    tables = json.loads((fixtures / "tokens.json").read_text("utf-8"))
    assert (tables["img_vocab"], tables["text_vocab"]) == (Vocabulary().codes, Vocabulary().text)
    assert tables["num_command_tokens"] == len(COMMANDS)
    for table in (tables, tables["small_model_tokenizer"]):
        vocabulary = Vocabulary(table["img_vocab"], table["text_vocab"])
        assert table["num_tokens"] == vocabulary.commands_start + len(COMMANDS)
        assert table["padded_vocab_size"] == vocabulary.size
        ours = {f"[{name}]": vocabulary.command(name) for name in COMMANDS}
        assert table["command_tokens"] == ours


def test_unknown_commands_and_empty_vocabularies_are_refused():
    with pytest.raises(InputError, match="'EOI9'; choose from PAD, BOI1"):
        Vocabulary().command("EOI9")
    for name in ("codes", "text"):
        with pytest.raises(InputError, match=f"{name} = 0: expected 1 to"):
            Vocabulary(**{name: 0})


@pytest.mark.parametrize("wide", [2**32 + 5, -(2**31) - 1, 2**31, 2**63])
def test_ids_are_never_cut_to_four_bytes(wide):
    with pytest.raises(InputError, match=f"codes from .*{wide}"):
        token_ids([5, wide], "codes") if wide < 2**63 else token_ids(np.uint64([wide]), "codes")


def test_ids_are_whole_numbers():
    with pytest.raises(InputError, match="codes of type float64: expected whole numbers"):
        token_ids([1.0], "codes")
    assert token_ids([], "codes").dtype == token_ids(np.uint8([7]), "codes").dtype == np.int32
    assert token_ids([[1], [2**31 - 1]], "codes").tolist() == [[1], [2**31 - 1]]
