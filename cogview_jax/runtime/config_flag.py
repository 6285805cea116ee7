"""The flag `--config FILE.py[:variant]`, or `--config NAME` of a shipped one, and its overrides.

A config file holds `get_config()`, or `get_config(variant)` where it describes several experiments,
and returns a `ConfigDict` of what differs from the defaults. `fill` adds the other settings from
the dataclass that the command names, so that any of them can be overridden. Loading is ours rather
than ml_collections' own, so that each mistake in a file, a variant or an override is one line that
names it; parsing and applying the overrides is theirs (`ml_collections.config_flags`). Overrides
are applied after `get_config` returns: a value computed from another one follows it only through a
`FieldReference`.
"""

import dataclasses
import difflib
import functools
import importlib.util
import inspect
import operator
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_dict, config_flags
from ml_collections.config_flags import config_path

from cogview_jax.runtime.config import Tagged, closest, dotted, setting_name, subscripted
from cogview_jax.runtime.errors import InputError

flags.disclaim_key_flags()  # the flag belongs to the command that asks for it

#: The experiments that come with the package.
SHIPPED = Path(__file__).parents[1] / "configs"


#: The dataclass whose settings a config has; InputError where the config does not say which.
Schema = Callable[[ConfigDict], type]


def config_flag(
    name: str = "config", required: bool = True, schema: Schema | None = None
) -> flags.FlagHolder:
    """Defines `--NAME FILE_OR_NAME[:variant]`; the holder's `.value` is the locked ConfigDict.

    Args:
        name: of the flag.
        required: whether the command line must have it.
        schema: gives the dataclass with the settings of a loaded config and their defaults, which
            the config then has all. It is called once a file was loaded, so what it imports costs
            `--help` nothing. Without it a config has the settings of its file.
    """
    text = (
        "the experiment: a file, or the name of a shipped one, such as demo;"
        f" --{name}.KEY=VALUE changes one setting, such as --{name}.train.steps=9"
    )
    holder = config_flags.DEFINE_config_file(name, help_string=text)
    flags.FLAGS[name].parser = _ConfigParser(name, schema)
    if required:
        flags.mark_flag_as_required(name)
    return holder


def given(name: str = "config") -> dict[str, str]:
    """Where each setting comes from that the user gave, by its dotted name.

    That is "--config.train.steps", or the config file; what has its default is not listed. `name`
    is that of the flag, which has been parsed.
    """
    flag: Any = flags.FLAGS[name]
    overridden = map(dotted, flag.override_values)
    return dict.fromkeys(flag.parser.written, flag.config_filename) | {
        key: f"--{name}.{key}" for key in overridden
    }


def settings_page(settings: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Every setting on a line, with its value and where that comes from, section by section.

    Args:
        settings: what became of a config, sections as mappings.
        origins: from `given`, by dotted names of settings or sections.

    Returns:
        Lines as "train.steps = 9  # --config.train.steps"; the origin of others is "default".
    """
    rows = []
    for key, value in _flat(settings):
        sections = [key, *(key[:i] for i, letter in enumerate(key) if letter == ".")]
        origin = next((origins[place] for place in sections if place in origins), "default")
        rows.append((key, repr(value), origin))
    width = max(len(key) for key, _, _ in rows)
    # A long value moves no other line's origin.
    widest = max((len(value) for _, value, _ in rows if len(value) <= 40), default=0)
    return "\n".join(
        f"{key:<{width}} = {value:<{widest}}  # {origin}" for key, value, origin in rows
    )


def load_config(spec: str) -> ConfigDict:
    """The unlocked config of `FILE.py` or `FILE.py:variant`, or of a shipped NAME.

    Settings that are None become placeholders, which an override may give any value.

    Raises:
        InputError: there is no such file or variant, or the file's own code fails.
    """
    file, colon, variant = spec.partition(":")
    path = config_path_of(file)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"config file {file}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"config file {file} defines no get_config()")
        arguments = [variant] if colon else []
        try:
            inspect.signature(module.get_config).bind(*arguments)
        except TypeError:
            form = "takes no variant (FILE.py)" if colon else "needs a variant (FILE.py:VARIANT)"
            raise InputError(f"config {spec}: {file} {form}") from None
        config = module.get_config(*arguments)
    except InputError:
        raise
    except Exception as error:
        if _is_refusal(error, path):
            raise InputError(f"config {spec}: {' '.join(str(error).split())}") from error
        raise InputError(_defect(error, path, spec)) from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"config {spec}: get_config() gave {config!r}, expected a ConfigDict")
    _open_placeholders(config)
    return config


class Filled(NamedTuple):
    """What `fill` did, in dotted names.

    missing: settings without a default that the file lacks; they are there as None. dropped: what
    the file says of a kind that an override has exchanged.
    """

    missing: list[str]
    dropped: list[str]


def fill(
    config: ConfigDict, schema: type, overrides: Mapping[str, str] | None = None, prefix: str = ""
) -> Filled:
    """Adds to `config` every setting of a dataclass that it lacks, with its default.

    Settings of the file stay as they are, references included, but get the type that the dataclass
    says, which decides what an override may be: 1 for a float becomes 1.0, and a setting of several
    types, such as `float | None`, takes any value.

    Of a `Tagged` family a section has the settings of its kind. Where an override exchanges the
    kind, what the file says of the other one goes, but for settings that all kinds share. Of a
    `dict[str, X]` with a dataclass X there is a section for each name that the file or an override
    has.

    Args:
        config: unlocked; is changed.
        schema: a dataclass.
        overrides: text by dotted name, as on the command line.
        prefix: the place of `config` in the whole, with a dot at its end.

    Raises:
        InputError: there is no such kind.
    """
    hints, done = typing.get_type_hints(schema), Filled([], [])
    for field in dataclasses.fields(schema):
        name, kind = setting_name(field.name), hints[field.name]
        place = f"{prefix}{name}"
        if (section := _section_type(kind)) is not None:
            within = _fill_sections(config, name, section, overrides or {}, f"{place}.")
            done.missing.extend(within.missing)
            done.dropped.extend(within.dropped)
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if issubclass(kind, Tagged) and kind.is_head():
                kind, dropped = _kind(config, name, kind, overrides or {}, place)
                done.dropped.extend(f"{place}.{key}" for key in dropped)
            if kind is not None and name not in config:
                config[name] = ConfigDict()
            if kind is not None and isinstance(config[name], ConfigDict):
                within = fill(config[name], kind, overrides, f"{place}.")
                done.missing.extend(within.missing)
                done.dropped.extend(within.dropped)
        elif name in config:
            _retype(config, name, kind)
        elif field.default_factory is not dataclasses.MISSING:
            config[name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            config[name] = field.default
            _retype(config, name, kind)
        else:
            config[name] = config_dict.placeholder(_type(kind))
            done.missing.append(place)
    return done


def _section_type(kind: Any) -> type | None:
    """X of an annotation `dict[str, X]` with a dataclass X; None of any other."""
    if typing.get_origin(kind) is not dict:
        return None
    section = typing.get_args(kind)[1]
    return section if isinstance(section, type) and dataclasses.is_dataclass(section) else None


def _fill_sections(
    config: ConfigDict, name: str, schema: type, overrides: Mapping[str, str], prefix: str
) -> Filled:
    """`fill` for sections of one schema in `config.NAME`, under names of the user's own."""
    done, sections = Filled([], []), config.get(name)
    if sections is None:
        sections = ConfigDict()
    if isinstance(sections, ConfigDict):
        named = [key[len(prefix) :].split(".")[0] for key in overrides if key.startswith(prefix)]
        for own in dict.fromkeys([*sections, *named]):
            section = sections.get(own, ConfigDict())
            if isinstance(section, ConfigDict):
                within = fill(section, schema, overrides, f"{prefix}{own}.")
                done.missing.extend(within.missing)
                done.dropped.extend(within.dropped)
                sections[own] = section
    config[name] = sections
    return done


def _kind(
    config: ConfigDict, name: str, family: type[Tagged], overrides: Mapping[str, str], place: str
) -> tuple[type | None, set[str]]:
    """The kind of section `config.NAME`, which gets the overridden one, and what that drops.

    The kind is None where neither the file nor an override says anything of the section.
    """
    section, override = config.get(name, ConfigDict()), overrides.get(f"{place}.kind")
    dropped: set[str] = set()
    if not isinstance(section, ConfigDict):
        return None, dropped
    if override is not None and override != section.get("kind", family.default_kind):
        family.of_kind(override, f"config.{place}")
        dropped = family.unshared() & set(section)
        for key in dropped:
            del section[key]
        section.kind = override
        config[name] = section
    if "kind" not in section:
        if family.default_kind is None:
            if any(key.startswith(f"{place}.") for key in overrides):
                family.of_kind(None, f"config.{place}")
            return None, dropped
        section.kind = family.default_kind
        config[name] = section
    return family.of_kind(section.kind, f"config.{place}"), dropped


def _retype(config: ConfigDict, name: str, kind: Any) -> None:
    """Gives a setting the type that its annotation `kind` says, where an override depends on it."""
    wanted, value = _type(kind), config[name]
    reference = dict(config.items(preserve_field_references=True))[name]
    if isinstance(reference, FieldReference):
        if wanted is object or (wanted is float and reference.get_type() is int):
            # In place, since other settings may share it; the library has no other way.
            reference._field_type = wanted
        return
    if wanted is object:
        value = FieldReference(value, field_type=object)
    elif wanted is float and type(value) is int:
        value = float(value)
    elif wanted is tuple and isinstance(value, list):
        value = tuple(value)
    else:
        return
    del config[name]  # or the new value would be of the old one's type
    config[name] = value


def _type(kind: Any) -> type:
    """The type of the values that an annotation allows; object where there are several."""
    origin = typing.get_origin(kind)
    if kind is Any or origin in (typing.Union, types.UnionType):
        return object
    return type(typing.get_args(kind)[0]) if origin is typing.Literal else origin or kind


def config_path_of(file: str) -> Path:
    """The file that is meant: `file` itself, or the shipped experiment of that name."""
    path, shipped = Path(file), SHIPPED / f"{file}.py"
    if path.is_file():
        return path
    if not file.isidentifier():
        raise InputError(f"config file {file} does not exist{_neighbours(path)}")
    if not shipped.is_file():
        names = [other.stem for other in SHIPPED.glob("*.py")]
        advice = closest(file, names)
        raise InputError(f"there is no shipped config {file!r}, and no such file; {advice}")
    return shipped


def check_overrides(name: str, config: ConfigDict, spec: str, arguments: list[str]) -> None:
    """InputError if an argument `--NAME.a.b...` names a setting that `config` does not have."""
    for argument in map(subscripted, arguments):
        match = re.match(rf"--?(?:no)?{re.escape(name)}\.([^=]*)", argument)
        if match is None:
            continue
        node, place = config, name
        try:
            parts = config_path.split(match[1])
        except ValueError:
            raise InputError(f"{argument}: {match[1]!r} is not the name of a setting") from None
        for part in parts:
            if isinstance(node, ConfigDict) and part not in node:
                advice = closest(str(part), node.keys())
                raise InputError(f"--{name}.{match[1]}: {spec} has no {place}.{part}; {advice}")
            if not isinstance(node, (ConfigDict, list, tuple)):
                raise InputError(f"--{name}.{match[1]}: {place} is a value, not a section")
            holder = node
            try:
                node = holder[part]
            except (IndexError, TypeError):
                raise InputError(f"--{name}.{match[1]}: {place} has no item {part!r}") from None
            if isinstance(holder, tuple):
                raise InputError(
                    f"--{name}.{match[1]}: an item of a list cannot be changed by itself; give the"
                    f" whole list, such as --{place}={','.join(map(str, holder))}"
                )
            place = f"{place}[{part}]" if isinstance(part, int) else f"{place}.{part}"


def _overrides(name: str, arguments: list[str]) -> dict[str, str]:
    """The text of each argument `--NAME.a.b=TEXT`, or that after `--NAME.a.b`, by dotted name."""
    found = {}
    for i, argument in enumerate(arguments):
        if match := re.fullmatch(
            rf"--?(?:no)?{re.escape(name)}\.([^=]*)(?:=(.*))?", argument, re.DOTALL
        ):
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            found[dotted(match[1])] = following if match[2] is None else match[2]
    return found


def _flat(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting; those of sub-sections come last."""
    whole = [(f"{prefix}{key}", section[key]) for key in section]
    for key, value in whole:
        if not hasattr(value, "keys"):
            yield key, value
    for key, value in whole:
        if hasattr(value, "keys"):
            yield from _flat(value, f"{key}.")


class _ConfigParser(flags.ArgumentParser):
    """What absl calls with the text after `--config`."""

    def __init__(self, name: str, schema: Schema | None):
        self.name, self.schema = name, schema
        #: The settings that the file has written itself.
        self.written: frozenset[str] = frozenset()

    def parse(self, argument: str) -> ConfigDict:
        config, arguments = load_config(argument), sys.argv[1:]
        self.written = frozenset(key for key, _ in _flat(config))
        overrides = _overrides(self.name, arguments)
        filled = fill(config, self.schema(config), overrides) if self.schema else Filled([], [])
        self.written -= set(filled.dropped)
        # Here, because the library's own look-up of an unknown setting ends in a bare KeyError.
        check_overrides(self.name, config, argument, arguments)
        for place in filled.missing:
            if place not in overrides:  # for the command to complain of
                *sections, key = place.split(".")
                del functools.reduce(operator.getitem, sections, config)[key]
        return config.lock()

    def flag_type(self) -> str:
        return "config file"


def _neighbours(path: Path) -> str:
    """Advice on a missing config file: what lies where it was looked for."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    found = sorted(other.name for other in path.parent.glob("*.py"))
    alike = difflib.get_close_matches(path.name, found, n=2) or found
    return f"; {path.parent} has {', '.join(alike)}" if alike else ""


def _is_refusal(error: Exception, path: Path) -> bool:
    """Whether a ValueError is what a config file itself says of its variant, and no defect of it.

    The file may have it from another one in its folder, which it builds on.
    """
    if not isinstance(error, ValueError) or isinstance(error, UnicodeError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    beside = Path(last.filename).resolve().parent == path.resolve().parent
    return beside and (last.line or "").startswith("raise ")


def _defect(error: Exception, path: Path, spec: str) -> str:
    """One line for an exception raised by a config file's code: where and what."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    lineno = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    at = f"{path}, line {lineno}" if lineno else str(path)
    what = " ".join(str(error).split())
    return f"config {spec} fails ({at}): {type(error).__name__}: {what}"


def _open_placeholders(config: Any) -> None:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _open_placeholders(value)
        elif value is None and config.get_type(key) is type(None):
            config[key] = config_dict.placeholder(object)
