"""What a prompt has to be, whatever becomes of it."""

from cogview_jax.runtime.errors import InputError

#: No text region holds nearly as many; a longer prompt is a file given by mistake.
MOST_CHARACTERS = 4096
_SHOWN = 60


def need_text(prompt: str, *, blank: bool = False) -> None:
    """InputError for what no text tokenizer should get; `blank`: whether it may hold nothing."""
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
    """The beginning of a prompt, in one line that can be printed."""
    return repr(prompt[:_SHOWN])
