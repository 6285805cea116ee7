"""The flags of the commands that sample: how a token is chosen."""

from collections.abc import Callable

from absl import flags

from cogview_jax.sampling.options import SamplingSettings

flags.disclaim_key_flags()  # a flag belongs to the command that asks for it


def sampling_flags() -> Callable[[], SamplingSettings]:
    """Defines `--temperature`, `--top_k`, `--top_p` and `--guidance`.

    Returns:
        A function that reads the parsed flags; InputError where one is out of its range.
    """
    holders: dict[str, flags.FlagHolder] = {
        "temperature": flags.DEFINE_float(
            "temperature",
            None,
            "0 takes the most likely token; by default what the bundle recommends, else 1, for"
            " captions 0, for super_resolution 0.7 or, with released weights, 1.02",
        ),
        "top_k": flags.DEFINE_integer(
            "top_k",
            None,
            "only the k most likely tokens, 0 for all; by default what the bundle recommends, else"
            " 200",
        ),
        "top_p": flags.DEFINE_float(
            "top_p",
            None,
            "only the most likely tokens that reach this probability; by default what the bundle"
            " recommends, else 1 for all",
        ),
        "guidance": flags.DEFINE_float(
            "guidance",
            None,
            "above 1 follows the prompt more closely, for models trained with drop_captions; by"
            " default what the bundle recommends, else 1",
        ),
    }
    return lambda: SamplingSettings(**{name: holder.value for name, holder in holders.items()})
