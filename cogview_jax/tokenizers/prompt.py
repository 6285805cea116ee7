"""Checks prompts, whichever task they are for."""

from cogview_jax.runtime.errors import InputError

#: No text region holds nearly as many characters. A longer prompt is a file given by mistake.
MOST_CHARACTERS = 4096
_SHOWN = 60


def need_text(prompt: object, *, blank: bool = False) -> None:
    """Checks that a text tokenizer can encode a prompt.

    Args:
        prompt: the value that a user gave; it may be of any type.
        blank: whether the prompt may hold nothing but spaces.

    Raises:
        InputError: it is no text, is longer than MOST_CHARACTERS, is blank, or holds a NUL
            character or a surrogate.
    """
    if not isinstance(prompt, str):
        raise InputError(f"prompt {repr(prompt)[:_SHOWN]}: expected a text")
    if len(prompt) > MOST_CHARACTERS:
        raise InputError(
            f"prompt {shown(prompt)} has {len(prompt)} characters, expected at most"
            f" {MOST_CHARACTERS}"
        )
    if "\0" in prompt:
        raise InputError(f"prompt {shown(prompt)} holds a NUL character, which is no text")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"prompt {shown(prompt)} is no Unicode text: expected UTF-8 without surrogates"
        ) from None
    if not blank and not prompt.strip():
        raise InputError(f"prompt {shown(prompt)} holds no text")


def shown(prompt: str) -> str:
    """Returns the beginning of a prompt as one line that can be printed."""
    return repr(prompt[:_SHOWN])
