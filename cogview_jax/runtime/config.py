"""From the mappings that experiments are written in to frozen, checked dataclasses.

Configs are plain mappings at the edge (`ml_collections.ConfigDict`, JSON); inside, every setting is
a field of a frozen dataclass, so an unknown key or a wrong type is found before the first step, and
no default hides in a `.get`.
"""

import dataclasses
import difflib
import keyword
import math
import types
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from cogview_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

#: Characters of a value that a message shows.
SHOWN = 200
#: The largest float32; settings beyond it are infinite to a device.
_LARGEST = float.fromhex("0x1.fffffep+127")


class SettingError(InputError):
    """A setting that is out of its range; the message begins with the name of its field."""


class Tagged:
    """The base of a family of dataclasses of which a config chooses one by its setting `kind`.

    The class directly below is the head of the family: the annotation under which `build` chooses,
    with the settings that all kinds share. Every class below the head is a kind; it says which as
    `kind: Literal["..."] = "..."`, and is known to configs once it is defined.

    Where a head has a `default_kind`, a section without `kind` is of that one.
    """

    #: The kinds of a family by name; each head has its own.
    kinds: ClassVar[dict[str, type]] = {}
    #: The kind of a section that names none; None where it has to.
    default_kind: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if cls.is_head():
            cls.kinds = {}
            return
        kind = vars(cls).get("kind")
        if not isinstance(kind, str):
            raise TypeError(f'{cls.__name__} needs kind: Literal["NAME"] = "NAME"')
        other = cls.kinds.get(kind)
        # A config file that is loaded twice defines its kinds twice.
        if other and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"kind {kind!r} is taken by {other.__module__}.{other.__qualname__}")
        cls.kinds[kind] = cls

    @classmethod
    def is_head(cls) -> bool:
        """Whether this class stands for its family and is no kind itself."""
        return Tagged in cls.__bases__

    @classmethod
    def of_kind(cls, kind: Any, where: str) -> type:
        """The class of a kind; `where` is the place of the section, for the error.

        Raises:
            InputError: there is no such kind, or none is said (None).
        """
        choices = ", ".join(sorted(cls.kinds))
        if kind is None:
            raise InputError(f"{where} lacks kind; choices are {choices}")
        if not isinstance(kind, str) or kind not in cls.kinds:
            raise InputError(f"{where}.kind = {_shown(kind)}: choices are {choices}")
        return cls.kinds[kind]

    @classmethod
    def foreign(cls, kind: str) -> set[str]:
        """Names of the settings that other kinds have and `kind` has not."""
        return set().union(*map(_names, cls.kinds.values())) - _names(cls.kinds[kind])

    @classmethod
    def unshared(cls) -> set[str]:
        """Names of the settings that are not common to all kinds."""
        return set().union(*map(_names, cls.kinds.values())) - _names(cls)


def _names(cls: type) -> set[str]:
    return {setting_name(field.name) for field in dataclasses.fields(cls)}


def setting_name(field: str) -> str:
    """What a dataclass's field is called in configs: `from_` is "from", which no field may be."""
    name = field.removesuffix("_")
    return name if keyword.iskeyword(name) else field


def as_settings(instance: "DataclassInstance") -> dict[str, Any]:
    """Every setting of an instance, as a config has them: nested dicts."""

    def section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {setting_name(field): value for field, value in pairs}

    return dataclasses.asdict(instance, dict_factory=section)


def subscripted(argument: str) -> str:
    """`--config.data.from=x` as `--config.data["from"]=x`, for those who read it as Python."""
    name, equals, value = argument.partition("=")
    if not name.startswith("-"):
        return argument
    first, *parts = name.split(".")
    parts = [f'["{part}"]' if keyword.iskeyword(part) else f".{part}" for part in parts]
    return f"{first}{''.join(parts)}{equals}{value}"


def dotted(name: str) -> str:
    """The name of a setting without the brackets of `subscripted`."""
    return name.replace('["', ".").replace('"]', "")


def require_range(
    settings: Any,
    *names: str,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> None:
    """Refuses a dataclass whose fields `names` are not all within the bounds.

    Whatever the bounds, a number is finite in float32, and a whole number without an upper bound
    has at most 31 bits, as devices count. Of a tuple every value is checked; None passes.

    Raises:
        SettingError: the first field that is not, its value, and what was expected.
    """
    for name in names:
        whole = getattr(settings, name)
        for value in whole if isinstance(whole, (tuple, list)) else (whole,):
            if value is None:
                continue
            limit = at_most
            if isinstance(value, int) and below == at_most == math.inf:
                limit = 2**31 - 1
            inside = above < value < below and at_least <= value <= limit
            if not (inside and abs(value) <= _LARGEST):
                shown = limit if value > limit else at_most
                expected = _bounds(above, at_least, below, shown)
                raise SettingError(f"{name} = {whole!r}: expected {expected}")


def _bounds(above: float, at_least: float, below: float, at_most: float) -> str:
    """Bounds in words: "at least 1", "above 0 and at most 1", "0 to 1"."""
    if math.isfinite(at_least) and math.isfinite(at_most):
        return f"{at_least} to {at_most}"
    given = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    words = [f"{word} {bound}" for word, bound in given.items() if math.isfinite(bound)]
    return " and ".join(words) or "a finite number"


def build(cls: type[T], mapping: Any, where: str = "config") -> T:
    """An instance of the dataclass `cls` with the settings of `mapping`.

    Understood annotations: `int`, `float` (an int is welcome), `str`, `bool`, `Literal[...]`,
    `X | None`, `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `dict[str, X]`, `Any`, and other
    dataclasses, which are built recursively; of the head of a `Tagged` family the kind that the
    section names. A value that is an instance of the wanted dataclass already is taken as it is.
    Where the dataclass has a mapping RENAMED of earlier names of its settings to present ones, both
    are understood.

    Args:
        cls: a dataclass; its `__post_init__` may raise InputError for values that do not fit
            together.
        mapping: anything with `keys()` and indexing: dict, ConfigDict.
        where: the dotted place of `mapping` in the whole config, for error messages.

    Raises:
        InputError: unknown key, missing key, or a value of the wrong type.
    """
    if isinstance(mapping, cls):
        return mapping
    fields = {setting_name(field.name): field for field in dataclasses.fields(cls) if field.init}
    if not hasattr(mapping, "keys"):
        raise InputError(
            f"{where} = {_shown(mapping)}: expected a section with {', '.join(fields)}"
        )
    if issubclass(cls, Tagged) and cls.is_head():
        kind = mapping.get("kind", cls.default_kind)
        return build(cls.of_kind(kind, where), mapping, where)
    mapping = _with_present_names(cls, mapping)
    for key in mapping:
        if key not in fields:
            advice = f"no such setting; {closest(key, fields)}"
            if issubclass(cls, Tagged):
                advice = f"kind {cls.kind!r} has no such setting; it has {', '.join(fields)}"
            raise InputError(f"{where}.{key}: {advice}")
    missing = [name for name, field in fields.items() if name not in mapping and _required(field)]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}; it needs a value for each")
    kinds = typing.get_type_hints(cls)
    values = {
        field.name: _convert(
            _listed(mapping[name], kinds[field.name]), kinds[field.name], f"{where}.{name}"
        )
        for name, field in fields.items()
        if name in mapping
    }
    try:
        return cls(**values)
    except SettingError as error:
        raise InputError(f"{where}.{error}") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _with_present_names(cls: type, mapping: Any) -> Any:
    """`mapping` with earlier names of settings replaced, unless it has the present ones too."""
    renamed = {
        earlier: name
        for earlier, name in getattr(cls, "RENAMED", {}).items()
        if earlier in mapping and name not in mapping
    }
    return {renamed.get(key, key): mapping[key] for key in mapping} if renamed else mapping


def closest(word: str, choices: Iterable[Any]) -> str:
    """The advice for a misspelt `word`: the choices most like it, or all of them if none is."""
    choices = sorted(map(str, choices))
    alike = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    if alike:
        return f"did you mean {' or '.join(alike)}?"
    return f"choices: {', '.join(choices) if choices else 'none'}"


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _listed(value: Any, kind: Any) -> Any:
    """`a,b` of a command line, which arrives as a list of this one text, as the list it stands for.

    Only of settings that are nothing but lists of texts: names, which have no commas.
    """
    if kind != tuple[str, ...] or not isinstance(value, (list, tuple)) or len(value) != 1:
        return value
    (text,) = value
    return tuple(part.strip() for part in text.split(",")) if isinstance(text, str) else value


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`, an annotation; InputError where it does not fit."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, where)
    if origin is typing.Literal:
        if value in args:
            return value
        raise InputError(f"{where} = {_shown(value)}: choices are {', '.join(map(repr, args))}")
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [args[0]] * len(value) if args[1:] == (...,) else args
        if len(value) != len(kinds):
            raise InputError(f"{where} = {_shown(value)}: expected {len(kinds)} values")
        return tuple(
            _convert(v, k, f"{where}[{i}]")
            for i, (v, k) in enumerate(zip(value, kinds, strict=True))
        )
    if origin is list and isinstance(value, (list, tuple)):
        return [_convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict and hasattr(value, "keys"):
        return {key: _convert(value[key], args[1], f"{where}.{key}") for key in value}
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise InputError(
        f"{where} = {_shown(value)}: expected {_describe(kind)}, got {_article(value)}"
    )


def _convert_union(value: Any, kinds: tuple, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, tuple) and len(value) == 1 and {int, float} & set(kinds):
        value = value[0]  # what a command line's single number is where the config has a list
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        return _convert(value, others[0], where)
    for kind in others:
        try:
            return _convert(value, kind, where)
        except InputError:
            continue
    raise InputError(f"{where} = {_shown(value)}: expected {' or '.join(map(_describe, kinds))}")


def _shown(value: Any) -> str:
    """A value in a message: a line of some length, whatever it is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _describe(kind: Any) -> str:
    """An annotation in words that need no Python."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    words[type(None)] = "None"
    args = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, args))
    if typing.get_origin(kind) is tuple and args[1:] != (...,):
        return f"a list of {len(args)} values"
    origins = {tuple: "a list of values", list: "a list of values", dict: "a section"}
    if kind in words:
        return words[kind]
    return origins.get(typing.get_origin(kind), getattr(kind, "__name__", str(kind)))


def _article(value: Any) -> str:
    name = "section" if hasattr(value, "keys") else type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
