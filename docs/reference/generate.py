"""Writes what follows from the code: commands.md, config.md, and the tree in architecture.md.

    .venv/bin/python docs/reference/generate.py

commands.md holds what `cogview NAME --help` prints, for every command. config.md lists the fields
of the dataclasses that a config is checked against, with their types, defaults and meanings. The
tree lists the files of the package with the first line of their docstrings. A test fails while a
page differs from what this script would write.
"""

import ast
import dataclasses
import inspect
import re
import runpy
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogview_jax.__main__ import COMMANDS
from cogview_jax.runtime.config import setting_name
from cogview_jax.tasks.experiment import STAGES

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
NOTICE = "<!-- Written by docs/reference/generate.py. Change the code and run the script again. -->"


# ---- commands.md


def commands_page() -> str:
    """The page about the commands, as Markdown."""
    lines = [
        "# Commands",
        "",
        NOTICE,
        "",
        "`cogview NAME` and `python -m cogview_jax.NAME` are the same command. Every command prints"
        " the text below with `--help`, writes its outputs whole or not at all, and ends with one"
        " of these statuses:",
        "",
        "| status | meaning | what to do |",
        "|---|---|---|",
        "| 0 | The work is done. | |",
        "| 1 | The machine failed (a full or failing disk, too little memory), and one line says"
        " what is kept; or this code has a defect, and a traceback says where. | Run the same"
        " command again. |",
        "| 2 | The input is wrong. One line names the value given, what was expected and the"
        " choices. | Change the input. |",
        "| 75 | A training run was asked to stop (SIGTERM) and has saved its state. | Run the same"
        " command again. |",
        "| 130 | The command was interrupted. A run goes on from its last checkpoint. | Run the"
        " same command again. |",
        "",
        "`make help` lists the targets of the Makefile; [launch/](../../launch/README.md) starts"
        " commands on several processes and hosts.",
    ]
    for name, does in COMMANDS.items():
        lines += ["", f"## {name}", "", f"`cogview {name}`: {does}.", "", "```text"]
        lines += [_help(name).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _help(name: str) -> str:
    """What a command prints of itself. A process each: two commands may define the same flag."""
    command = [sys.executable, "-m", "cogview_jax", name, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


# ---- config.md


def config_page() -> str:
    """The page about the settings of a config, as Markdown."""
    lines = [
        "# Settings of a config",
        "",
        NOTICE,
        "",
        "A config describes one training run. Its `stage` decides which of the two schemas below"
        " it is checked against. An unknown setting, a missing one and a value of the wrong type"
        " are errors that name the setting. `--config.SECTION.NAME=VALUE` changes one setting on"
        " the command line, for example `--config.train.steps=100`. A setting whose default is"
        " *required* has none: the config has to give it a value.",
    ]
    sections: dict[type, list[str]] = {}
    for stage, schema in STAGES.items():
        lines += ["", f'## stage = "{stage}"', ""]
        lines += _schema(schema)
        for path, kind in _sections(schema, ""):
            places = sections.setdefault(kind, [])
            if path not in places:
                places.append(path)
    for kind, paths in sections.items():
        lines += ["", f"## {kind.__name__}", "", _places(kind, paths), ""]
        lines += _schema(kind)
    return "\n".join(lines) + "\n"


def _schema(kind: type) -> list[str]:
    """What a dataclass says of itself, and a table of its fields."""
    about, meanings = _documentation(kind)
    lines = [about, ""] if about else []
    lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
    kinds = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        inner = [
            f"[{one.__name__}](#{one.__name__.lower()})" for one in _dataclasses(kinds[field.name])
        ]
        written = " or ".join(inner) if inner else f"`{_type(kinds[field.name])}`"
        if inner and typing.get_origin(kinds[field.name]) is dict:
            written = f"sections of {written}"
        name = setting_name(field.name)
        cells = (f"`{name}`", written, _default(field), meanings.get(name, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _places(kind: type, paths: list[str]) -> str:
    """Where in a config a section stands, and the file that defines it."""
    file = Path(inspect.getfile(kind)).resolve().relative_to(ROOT).as_posix()
    shown = " and ".join(f"`{path}`" for path in paths)
    return f"The section {shown}, defined in [{file}](../../{file})."


def _sections(schema: type, path: str, outer: tuple[type, ...] = ()) -> Iterator[tuple[str, type]]:
    """The dataclasses within a schema, each with its dotted path, in the order of the fields.

    Those within the `outer` ones of a section, as sources are within a mixture of them, are not
    listed there again.
    """
    kinds = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = kinds[field.name]
        here = f"{path}.{field.name}" if path else field.name
        here += ".NAME" * (typing.get_origin(kind) is dict)
        inner = [each for each in _dataclasses(kind) if each not in outer]
        for each in inner:
            yield here, each
            yield from _sections(each, here, (*outer, *inner))


def _dataclasses(kind: Any) -> list[type]:
    """The dataclasses that an annotation allows: of a family of kinds, those of the package."""
    if dataclasses.is_dataclass(kind):
        family = getattr(kind, "kinds", {}) if getattr(kind, "is_head", bool)() else {}
        own = [one for one in family.values() if one.__module__.startswith("cogview_jax.")]
        return own or [kind]
    if typing.get_origin(kind) in (dict, typing.Union, types.UnionType):
        return [one for each in typing.get_args(kind) for one in _dataclasses(each)]
    return []


def _type(kind: Any) -> str:
    """An annotation as a reader of the page knows it: `int`, `"a" | "b"`, `tuple[int, ...]`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " | ".join(
            f'"{value}"' if isinstance(value, str) else repr(value) for value in arguments
        )
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type, arguments))
    if kind is type(None):
        return "None"
    if arguments:
        inner = ", ".join("..." if each is ... else _type(each) for each in arguments)
        return f"{origin.__name__}[{inner}]"
    return getattr(kind, "__name__", str(kind))


def _default(field: dataclasses.Field) -> str:
    """A field's default as Markdown."""
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "*required*"
    if dataclasses.is_dataclass(value):
        return "its defaults" if value == type(value)() else "see the code"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value!r}`"


def _documentation(kind: type) -> tuple[str, dict[str, str]]:
    """A dataclass's description, and what is said of each field.

    A field's text is `field.metadata["doc"]`, or else what the docstring says of it, either in
    sentences that begin with its name ("steps: how many there are.") or under "Attributes:".
    """
    fields = [field for field in dataclasses.fields(kind) if field.init]
    meanings = {f.name: f.metadata["doc"] for f in fields if "doc" in f.metadata}
    names = [setting_name(field.name) for field in fields]
    about, said = _of_docstring(kind, names)
    for parent in kind.__mro__[1:]:  # what a family says of the settings that its kinds share
        if dataclasses.is_dataclass(parent):
            said = _of_docstring(parent, names)[1] | said
    return about, said | meanings


def _of_docstring(kind: type, fields: list[str]) -> tuple[str, dict[str, str]]:
    """What stands before the first field in a docstring, and what it says of each field."""
    meanings: dict[str, str] = {}
    text = " ".join(inspect.cleandoc(_own_docstring(kind)).split())
    text = re.sub(r"\bAttributes: ", "", text)
    names = "|".join(sorted(map(re.escape, fields), key=len, reverse=True))
    # A name, or several with commas, then a colon: at the start or after the end of a sentence.
    start = re.compile(rf"(?:^|(?<=[.;)] ))((?:{names})(?:, (?:{names}))*): ")
    matches = list(start.finditer(text)) if names else []
    ends = [match.start() for match in matches[1:]] + [len(text)] * bool(matches)
    for match, end in zip(matches, ends, strict=True):
        said = text[match.end() : end].strip()
        for name in match[1].split(", "):
            meanings.setdefault(name, _sentence(said))
    return (text[: matches[0].start()].strip() if matches else text), meanings


def _sentence(text: str) -> str:
    """A meaning as a sentence, unless it begins with what it is about ("folder: ...")."""
    text = text.rstrip(";")
    return text if re.match(r"\w+( \w+){0,2}: ", text) else text[:1].upper() + text[1:]


def _own_docstring(kind: type) -> str:
    """The docstring that was written; dataclasses without one get their signature for it."""
    text = kind.__doc__ or ""
    return "" if text.startswith(f"{kind.__name__}(") else text


# ---- the tree in architecture.md

BEGIN, END = "<!-- The tree: written by docs/reference/generate.py -->", "<!-- End of the tree -->"


def architecture_page() -> str:
    """The page about the architecture, its tree written anew and the rest as it is."""
    text = (ROOT / ARCHITECTURE).read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tree = "\n".join(["```text", *_tree(), "```"])
    return f"{before}{BEGIN}\n\n{tree}\n\n{END}{after}"


def _tree() -> Iterator[str]:
    """The files of the package, folder by folder in the order of the imports."""
    package = ROOT / "cogview_jax"
    yield "cogview_jax/"
    order = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))["WAY"]
    for name in order:
        yield _entry(package / name, "  ")
        yield from _contents(package / name, "    ")
    for file in sorted(package.glob("*.py")):
        if file.name != "__init__.py":
            yield _entry(file, "  ")


def _contents(folder: Path, indent: str) -> Iterator[str]:
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and (path / "__init__.py").exists():
            yield _entry(path, indent)
            yield from _contents(path, f"{indent}  ")
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield _entry(path, indent)


def _entry(path: Path, indent: str) -> str:
    """A line of the tree: the name, and what the docstring's first line says."""
    source = path / "__init__.py" if path.is_dir() else path
    said = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n")[0]
    name = f"{indent}{path.name}{'/' * path.is_dir()}"
    return f"{name:<28} {said.rstrip('.')}".rstrip()


ARCHITECTURE = "docs/explanations/architecture.md"
PAGES = {
    "docs/reference/commands.md": commands_page,
    "docs/reference/config.md": config_page,
    ARCHITECTURE: architecture_page,
}


def main() -> None:
    """Writes the pages."""
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
