"""From what a config file says to a `ConfigDict` with every setting of the experiment.

A flag can only override a setting that is there, in the type that it has there. So the settings
that the file leaves out are added from the dataclass, with their defaults and types.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference, config_dict

from cogview_jax.runtime.config import Tagged, setting_name


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
