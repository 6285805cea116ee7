"""How every command starts, explains itself, and fails.

A command is a module with a docstring, absl flags, and a `main()`, given to `run`.

What the user did wrong is one line on standard error and exit status 2; a file that cannot be
opened counts as such, unless the work had begun (`faults.at_work`). What the machine did wrong, a
disk that is full or fails, is one line and exit status 1. Our own defects keep their traceback, and
exit status 1 too. Commands import what is heavy inside `main`, so that `--help` and mistakes answer
at once.
"""

import contextlib
import gc
import inspect
import os
import select
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from types import ModuleType
from typing import NoReturn

from absl import flags, logging

from cogview_jax.runtime.compilation_cache import enable_compilation_cache
from cogview_jax.runtime.config import closest, subscripted
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import is_fault, reason, system_error, where

flags.disclaim_key_flags()  # a flag belongs to the command that asks for it

#: The last is what a shell says of a program that SIGPIPE has ended.
BAD_INPUT, INTERRUPTED, UNREAD = 2, 130, 141

_METAVARS = {
    "config file": "FILE_OR_NAME[:variant]",
    "string": "TEXT",
    "multi string": "TEXT",
    "int": "N",
    "multi int": "N",
    "float": "X",
    "multi float": "X",
    "comma separated list of strings": "A,B",
    "multi NAME=FILE": "NAME=FILE",
    "numbers": "N,N",
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def run(command: ModuleType) -> None:
    """Parses the command line, calls `command.main()`, and exits with its status (None is 0).

    Where nobody reads what it prints any more (`| head -1`), it ends silently with status 141.
    """
    _open_streams()
    try:
        _run(command)
    except BrokenPipeError:
        if not _is_unread():
            raise
        with open(os.devnull, "wb") as nowhere:
            for descriptor in (1, 2):  # what is left in buffers has to go somewhere
                os.dup2(nowhere.fileno(), descriptor)
        _leave(UNREAD)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """For imports of the large libraries: nothing looks for garbage, which takes a seventh of them.

    What they have made stays, so it is not looked at later either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def need(flag: flags.FlagHolder) -> None:
    """InputError if a flag was not given, where not every use of the command needs it."""
    if flag.value is None:
        raise InputError(f"--{flag.name} TEXT is missing: {flags.FLAGS[flag.name].help}")


def _run(command: ModuleType) -> NoReturn:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # XLA's C++ log: warnings, no chatter
    try:
        if {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"} & set(sys.argv[1:]):
            print(help_page(command))
            status = 0
        else:
            enable_compilation_cache()
            _compute_in_32_bits()
            _parse(sys.argv, command)
            status = command.main()
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except InputError as error:
        # What it quotes of a file may have several lines.
        _fail("error: " + " ".join(str(error).split("\n")), BAD_INPUT)
    except SystemExit as leaving:  # see `processes.leave_when_asked`
        if not isinstance(leaving.code, int):
            raise
        _leave_threads(leaving.code)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to continue", INTERRUPTED)
    except SystemFault as error:
        _fail(f"error: {error}", 1)
    except Exception as error:
        if _lacks_platform():
            asked = os.environ["JAX_PLATFORMS"]
            _fail(f"error: JAX_PLATFORMS={asked}: there is no such platform here", BAD_INPUT)
        _fail_in_a_line(error)
        if "RESOURCE_EXHAUSTED" in str(error):  # jax's own type is known only once jax is loaded
            line = str(error).strip().splitlines()[0]
            advice = "raise train.accumulate, or sample fewer images at a time (--batch_size)"
            _fail(f"error: the device has too little memory ({line}): {advice}", 1)
        _fail(traceback.format_exc(), 1)
    sys.exit(status)


def _fail_in_a_line(error: Exception) -> None:
    """Leaves if the system refused something: 2 where it may be a name that the user gave, or 1."""
    system = error if isinstance(error, MemoryError) else system_error(error)
    if system is None:
        return
    line = f"error: {where(system)}{reason(system)}"
    if is_fault(system):
        _fail(line, 1)
    if where(system):
        _fail(line, BAD_INPUT)


def help_page(command: ModuleType) -> str:
    """A command's docstring and its own flags; those of absl and jax are left out."""
    own = _own_flags(command)
    needed = [_synopsis(flag) for flag in own if _required(flag)]
    usage = " ".join([_program(command), *needed, "[flags]"])
    lines = [inspect.cleandoc(command.__doc__ or ""), "", f"usage: {usage}", "", "flags:"]
    indent = " " * 6
    for flag in own:
        lines.append(f"  {_synopsis(flag)}")
        text = f"{_help(flag)}{_default(flag)}"
        lines += textwrap.wrap(text, 92, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def _parse(argv: list[str], command: ModuleType) -> None:
    """Parses `argv` into absl's FLAGS; InputError on every mistake in it."""
    argv[1:] = map(subscripted, argv[1:])
    for name, value in _given(argv):
        flag = None if name in flags.FLAGS else _own(name.removeprefix("no"), command)
        if value is not None and flag is not None and flag.boolean:
            raise InputError(f"--{name}={value}: expected --{name}, or --{flag.name}=true or false")
        parser = flags.FLAGS[name].parser if name in flags.FLAGS else None
        # No bound of absl's keeps it out, since it is neither less nor more.
        if isinstance(parser, flags.FloatParser) and str(value).strip().lower() == "nan":
            raise InputError(f"--{name}={value}: expected {_expected(parser)}")
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise InputError(_explain(error, argv, command)) from None
    if rest[1:]:
        raise InputError(
            f"unexpected argument {rest[1]!r}: everything is given by flags, see --help"
        )
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)


def _explain(error: Exception, argv: list[str], command: ModuleType) -> str:
    """Why absl refuses `argv`, in words for someone who knows the command but not absl.

    absl's exceptions tell the mistake by their texts alone, so it is looked for in `argv` again.
    """
    if isinstance(error.__context__, InputError):  # from a config file
        return str(error.__context__)
    own = _own_flags(command)
    if isinstance(error, flags.UnrecognizedFlagError):
        advice = closest(error.flagname, [flag.name for flag in own])
        return f"there is no flag --{error.flagname}; {advice}"
    for name, value in _given(argv):
        if name not in flags.FLAGS:
            # A class of ml_collections, which `config_flag` alone imports: the first setting whose
            # type no flag can have ended the definition of flags for settings.
            if "." in name and type(error).__name__ == "UnsupportedOperationError":
                return f"--{name} cannot be given here: change it in the config file"
        elif value is None:
            return f"{_synopsis(flags.FLAGS[name])} has no value: {_help(flags.FLAGS[name])}"
        elif problem := _problem(flags.FLAGS[name].parser, value):
            return f"--{name}={value}: {problem}"
    if isinstance(error, flags.IllegalFlagValueError):
        for flag in own:
            if flag.value is None and _required(flag):
                return f"{_synopsis(flag)} is missing: {_help(flag)}"
    return " ".join(str(error).split())


def _given(argv: list[str]) -> Iterator[tuple[str, str | None]]:
    """The flags of a command line as absl reads it: name and value, or None where there is none.

    A boolean flag that stands alone is left out.
    """
    arguments = iter(argv[1:])
    for argument in arguments:
        if argument == "--":
            return
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
        if not argument.startswith("-") or not name:
            continue
        if equals:
            yield name, value
        elif name not in flags.FLAGS:
            yield name, None
        elif not flags.FLAGS[name].boolean:
            yield name, next(arguments, None)


def _problem(parser: flags.ArgumentParser, value: str) -> str | None:
    """What is wrong with a value of a flag, if its parser refuses it."""
    if parser.flag_type() == "config file":  # which explains itself
        return None
    try:
        parser.parse(value)
    except (TypeError, ValueError, OverflowError) as error:
        return f"expected {expected}" if (expected := _expected(parser)) else str(error)
    return None


def _expected(parser: flags.ArgumentParser) -> str | None:
    """What a parser of absl takes; None for others, which say it themselves."""
    if choices := getattr(parser, "enum_values", None):
        return f"one of {', '.join(choices)}" if choices[1:] else choices[0]
    kind = _KINDS.get(parser.flag_type())
    low, high = (getattr(parser, f"{end}_bound", None) for end in ("lower", "upper"))
    if kind is None or low is high is None:
        return kind
    if high is None:
        return f"{kind}, at least {low}"
    return f"{kind}, at most {high}" if low is None else f"{kind} from {low} to {high}"


def _compute_in_32_bits() -> None:
    """Whatever JAX_ENABLE_X64 says: in 64 bits, images would not be those of others."""
    os.environ["JAX_ENABLE_X64"] = "0"
    if jax := sys.modules.get("jax"):  # it has read its environment already
        jax.config.update("jax_enable_x64", False)


def _lacks_platform() -> bool:
    """Whether jax has no devices of the platform that the environment asks for."""
    jax = sys.modules.get("jax")
    if jax is None or not os.environ.get("JAX_PLATFORMS"):
        return False
    try:
        jax.devices()
    except Exception:  # mostly a RuntimeError; where a plugin finds no device, an AssertionError
        return True
    return False


def _open_streams() -> None:
    """Opens nothing in place of a standard stream that was closed before the program began.

    A file that is opened later would otherwise get its number, and what libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # It gets the lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _is_unread() -> bool:
    """Whether standard output or error is a pipe that nobody reads."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _fail(message: str, status: int) -> NoReturn:
    """Prints `message` on standard error and leaves with `status`."""
    sys.stdout.flush()
    print(message.rstrip(), file=sys.stderr, flush=True)
    _leave(status)


def _leave(status: int) -> NoReturn:
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        # A regular exit waits in a barrier for peers that wait for this process: leave at once.
        os._exit(status)
    _leave_threads(status)


def _leave_threads(status: int) -> NoReturn:
    """Exits, at once where a thread would be waited for, such as one in which XLA compiles."""
    threads = {*threading.enumerate()} - {threading.main_thread()}
    if any(not thread.daemon for thread in threads):
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _own_flags(command: ModuleType) -> list[flags.Flag]:
    """The flags that a command defines: absl files those of `__main__` under argv[0]."""
    name = command.__name__
    return flags.FLAGS.get_key_flags_for_module(sys.argv[0] if name == "__main__" else name)


def _own(name: str, command: ModuleType) -> flags.Flag | None:
    return next((flag for flag in _own_flags(command) if flag.name == name), None)


def _program(command: ModuleType) -> str:
    """How the command is called: `cogview NAME`, or of a program of its own, by python."""
    spec = command.__spec__
    if command.__name__ != "__main__" and spec is not None:
        return f"cogview {spec.name.rpartition('.')[2]}"
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"


def _required(flag: flags.Flag) -> bool:
    """Whether a validator of the flag refuses None, as that of `required=True` does."""
    return any(not validator.checker(None) for validator in flag.validators)


def _help(flag: flags.Flag) -> str:
    """A flag's help as it was given to absl, which adds its choices and that it may be repeated."""
    choices = "|".join(getattr(flag.parser, "enum_values", ()))
    text = flag.help.removeprefix(f"<{choices}>: ")
    return text.removesuffix(";\n    repeat this option to specify a list of values")


def _synopsis(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    values = getattr(flag.parser, "enum_values", None)
    return (
        f"--{flag.name} {'|'.join(values) if values else _METAVARS.get(flag.flag_type(), 'VALUE')}"
    )


def _default(flag: flags.Flag) -> str:
    if _required(flag):
        return " (required)"
    repeat = " (may be repeated)" if flag.flag_type().startswith("multi") else ""
    return repeat if flag.default in (None, [], "") else f" (default: {flag.default}){repeat}"
