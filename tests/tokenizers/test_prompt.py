"""What no text tokenizer should get."""

import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.prompt import MOST_CHARACTERS, need_text


def test_texts_of_any_script_are_prompts():
    need_text("红色圆形")
    need_text("x" * MOST_CHARACTERS)
    need_text(" ", blank=True)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (3, "prompt 3: expected a text"),
        (None, "prompt None: expected a text"),
        (b"a star", "prompt b'a star': expected a text"),
        ("x" * (MOST_CHARACTERS + 1), r"has 4097 characters, expected at most 4096$"),
        ("a\0star", r"prompt 'a\\x00star' holds a NUL character"),
        ("caf\udce9", r"prompt 'caf\\udce9' is no Unicode text"),
        ("\u3000\n", "holds no text"),
    ],
)
def test_what_is_no_text_is_one_line(prompt, message):
    with pytest.raises(InputError, match=message) as error:
        need_text(prompt)
    assert "\n" not in str(error.value)
