"""The prompts that the previews of a text-to-image run show."""

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import is_fault, reason
from cogview_jax.runtime.files import read_regular, text_lines
from cogview_jax.tokenizers.prompt import need_text, shown
from cogview_jax.tokenizers.text import TextTokenizer

#: Prompts that a preview shows at most, and bytes of their file.
MOST_SAMPLE_PROMPTS = 64
_LIMIT = 1 << 20


def read_sample_prompts(
    given: str | tuple[str, ...], tokenizer: TextTokenizer, longest: int
) -> list[str]:
    """The prompts of a setting.

    Args:
        given: a file with one prompt a line, of which blank lines are passed over; or the prompts
            themselves.
        tokenizer: of the run.
        longest: the number of text tokens that a sequence has room for.

    Raises:
        InputError: the file cannot be read or is no UTF-8; a prompt is blank or too long; there is
            none, or there are more than MOST_SAMPLE_PROMPTS.
    """
    prompts, where = list(given), "train.sample_prompts"
    if isinstance(given, str):
        where = f"train.sample_prompts {given}"
        try:
            lines = text_lines(read_regular(given, _LIMIT))
        except (OSError, ValueError) as error:
            if is_fault(error):
                raise
            raise InputError(f"{where} cannot be read as UTF-8 text: {reason(error)}") from error
        prompts = [line.strip() for line in lines if line.strip()]
    if not 0 < len(prompts) <= MOST_SAMPLE_PROMPTS:
        raise InputError(
            f"{where}: {len(prompts)} prompts, expected 1 to {MOST_SAMPLE_PROMPTS}, one a line"
        )
    for prompt in prompts:
        try:
            need_text(prompt)
            count = len(tokenizer.encode(prompt))
            if not 0 < count <= longest:
                raise InputError(
                    f"prompt {shown(prompt)} has {count} tokens, but layout.text_length is"
                    f" {longest}: shorten it"
                )
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return prompts
