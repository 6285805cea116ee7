"""`cogview NAME`: one command for all of them, which is `python -m cogview_jax NAME` too."""

import importlib
import sys

from cogview_jax.runtime.command_line import BAD_INPUT, run
from cogview_jax.runtime.config import closest

#: What each command does.
COMMANDS = {
    "train": "train an image tokenizer or a transformer",
    "prepare": "turn captioned images into a token store",
    "survey": "look at one's data: a page with its sizes, captions and duplicates",
    "sample": "generate, complete, upsample, caption or rank images",
    "evaluate": "measure a bundle into a JSON report",
    "serve": "answer requests: an HTTP API as OpenAI's clients expect it, and a page",
    "convert": "read and write the checkpoints of others, and safetensors",
    "export": "a bundle for use without this code: StableHLO, safetensors, Orbax",
}
_HELP = ("--help", "-help", "-h", "help")


def main() -> None:
    """Runs the command that the first argument names, with the others."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"cogview {name}"]
        run(importlib.import_module(f"cogview_jax.commands.{name}"))
    if name in _HELP:
        print(_help())
        sys.exit(0)
    advice = closest(name, COMMANDS)
    problem = f"there is no command {name!r}; {advice}" if name else f"no command; {advice}"
    print(f"error: {problem} (cogview --help)", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _help() -> str:
    lines = [f"  {name:10}{does}" for name, does in COMMANDS.items()]
    head = ["CogView in JAX.", "", "usage: cogview COMMAND [flags]", "", "commands:"]
    return "\n".join([*head, *lines, "", "cogview COMMAND --help explains one."])


if __name__ == "__main__":
    main()
