"""Kinds of flags that absl does not have: paths, bundles, pairs, lists of numbers."""

from typing import Any

from absl import flags

from cogview_jax.runtime.paths import path_problem

flags.disclaim_key_flags()  # a flag belongs to the command that asks for it


def path_flag(
    name: str, help: str, *, default: str | None = None, required: bool = False
) -> flags.FlagHolder:
    """Defines `--NAME PATH`: a text that is the path of a file or folder."""
    text: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    return flags.DEFINE(_PathParser(), name, default, help, serializer=text, required=required)


def address_flag(name: str, help: str, *, required: bool = False) -> flags.FlagHolder:
    """Defines `--NAME PATH`: a path, or an address, which is looked at where it is used."""
    text: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    return flags.DEFINE(_AddressParser(), name, None, help, serializer=text, required=required)


def paths_flag(name: str, help: str) -> flags.FlagHolder:
    """Defines `--NAME PATH`, which may be repeated; its value is a list, empty by default."""
    return flags.DEFINE_multi(_PathParser(), flags.ArgumentSerializer(), name, [], help)


def pairs_flag(name: str, help: str) -> flags.FlagHolder:
    """Defines `--NAME KEY=PATH`, which may be repeated; its value is a list of pairs."""
    return flags.DEFINE_multi(_PairParser(), _PairSerializer(), name, [], help)


def numbers_flag(name: str, default: tuple[int, ...], help: str) -> flags.FlagHolder:
    """Defines `--NAME 1,2,3`: a tuple of whole numbers."""
    return flags.DEFINE(_NumbersParser(), name, default, help, serializer=_NumbersSerializer())


class _NumbersParser(flags.ArgumentParser):
    def parse(self, argument: Any) -> tuple[int, ...]:
        if isinstance(argument, tuple):  # a default
            return argument
        try:
            return tuple(int(number) for number in argument.split(","))
        except ValueError:
            raise ValueError("expected whole numbers, such as 1,2,4") from None

    def flag_type(self) -> str:
        return "numbers"


class _NumbersSerializer(flags.ArgumentSerializer):
    def serialize(self, value: tuple[int, ...]) -> str:
        return ",".join(map(str, value))


class _PairParser(flags.ArgumentParser):
    def parse(self, argument: Any) -> tuple[str, str]:
        if isinstance(argument, tuple):  # absl parses a default again
            return argument
        key, equals, path = argument.partition("=")
        if not (key and equals and path):
            raise ValueError("expected NAME=FILE")
        if problem := path_problem(path):
            raise ValueError(problem)
        return key, path

    def flag_type(self) -> str:
        return "NAME=FILE"


class _PairSerializer(flags.ArgumentSerializer):
    def serialize(self, value: tuple[str, str]) -> str:
        return "=".join(value)


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        if problem := path_problem(argument):
            raise ValueError(problem)
        return argument

    def flag_type(self) -> str:
        return "string"


class _AddressParser(_PathParser):
    def parse(self, argument: str) -> str:
        return argument if "://" in argument else super().parse(argument)
