"""Makes the embedded sheets of emoji, and the large captioned folder of them.

    examples/emoji/make.sh sheets [--check]
    examples/emoji/make.sh folder --out DIR [--size 256]
    examples/emoji/make.sh folder --out runs/style/data --size 64 --styles openmoji --embedded

The art and the names come as npm packages of fixed versions and hashes, fetched by `npm pack` into
--packages where they are not there yet. Every picture is drawn at 256 x 256 pixels, laid on white,
and reduced by averaging. The same packages give the same bytes.
"""

import argparse
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cogview_jax.data import emoji_set  # noqa: E402
from cogview_jax.data.emoji_set import COLUMNS, LANGUAGES, SPLITS, TILE, Concept, Style  # noqa: E402
from cogview_jax.runtime.errors import InputError, SystemFault  # noqa: E402
from cogview_jax.runtime.files import atomic_path, check_folder_output  # noqa: E402
from cogview_jax.runtime.progress import Progress  # noqa: E402

#: Pixels at which every picture is drawn; the package of 3D renders has this size.
DRAWN = 256


class Package(NamedTuple):
    """An npm package: name and version, and the hash of its archive."""

    spec: str
    sha256: str

    @property
    def file(self) -> str:
        """The name `npm pack` gives the archive."""
        return self.spec.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"


class Art(NamedTuple):
    """The package with the pictures of a style, the licence of these, and who made them."""

    package: Package
    licence: str
    origin: str


def _pinned() -> tuple[Package, dict[str, Package], dict[str, Art]]:
    """The packages of packages.json: the list of emoji, their names, and the art of each style."""
    table = json.loads((HERE / "packages.json").read_text(encoding="utf-8"))
    names = {part: Package(**package) for part, package in table["names"].items()}
    art = {
        style: Art(Package(**entry["package"]), entry["licence"], entry["origin"])
        for style, entry in table["art"].items()
    }
    return Package(**table["emoji"]), names, art


EMOJI, NAMES, ART = _pinned()
#: The embedded styles come first, so that the numbers of pairs, and which are held out, stay.
STYLES = (
    *emoji_set.STYLES,
    Style("twemoji", "Twemoji", "Twemoji"),
    Style("openmoji", "OpenMoji", "OpenMoji"),
)
#: What may lie in the package.
PERMISSIVE = {"Apache-2.0", "MIT"}


# ---- packages


def fetch(package: Package, folder: Path) -> Path:
    """The archive of a package in `folder`, fetched where it is not there, its hash checked."""
    path = folder / package.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", package.spec]
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"{package.spec}: `{' '.join(command)}` failed ({error}): install npm, or put"
                f" {package.file} into {folder}"
            ) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise InputError(f"{path}: its sha256 is {found}, expected {package.sha256}: delete it")
    return path


def members(path: Path, wanted: Iterable[str] = ()) -> dict[str, bytes]:
    """The files of an archive by their path in the package: those `wanted`, or all."""
    wanted = set(wanted)
    with tarfile.open(path) as archive:
        entries = ((e, e.name.removeprefix("package/")) for e in archive if e.isfile())
        return {n: archive.extractfile(e).read() for e, n in entries if not wanted or n in wanted}


def plain(code: str) -> str:
    """A code ("1f441-fe0f") without variation selectors, which packages set differently."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def code_of(text: str) -> str:
    """The code of an emoji that is given as text."""
    return plain("-".join(f"{ord(character):x}" for character in text))


def read_names(folder: Path) -> dict[str, dict[str, str]]:
    """Of each language the name of every code, as Unicode CLDR has it for text to speech."""
    names: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
    for part, package in NAMES.items():
        files = {language: f"{part}/{language}/annotations.json" for language in LANGUAGES}
        found = members(fetch(package, folder), files.values())
        for language, file in files.items():
            for text, entry in json.loads(found[file])[part]["annotations"].items():
                if "tts" in entry:
                    names[language].setdefault(code_of(text), entry["tts"][0])
    return names


def unique_names(codes: Sequence[str], names: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Those codes that have a name in every language, the same as no earlier code has."""
    kept, taken = [], {language: set() for language in LANGUAGES}
    for code in codes:
        found = [(language, names[language].get(code)) for language in LANGUAGES]
        if all(name and name.casefold() not in taken[language] for language, name in found):
            kept.append(code)
            for language, name in found:
                taken[language].add(name.casefold())
    return kept


# ---- pictures


def svg(icons: Mapping[str, Any], name: str) -> str:
    """The SVG document of an icon of an Iconify set; a colour that it leaves open is black."""
    entry = icons["icons"].get(name)
    if entry is None:
        alias = icons["aliases"][name]
        if set(alias) != {"parent"}:
            raise InputError(f"{icons['prefix']}: the alias {name} changes its icon: {alias}")
        return svg(icons, alias["parent"])
    box = {"left": 0, "top": 0, "width": icons.get("width", 16), "height": icons.get("height", 16)}
    box |= {side: entry[side] for side in box if side in entry}
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' color="#000000" viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">'
        f"{entry['body']}</svg>"
    )


def rasterise(document: str) -> bytes:
    """The PNG of an SVG document, DRAWN pixels wide and high."""
    import resvg_py  # The rasteriser is a tool of this script alone.

    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=document, width=DRAWN, height=DRAWN, skip_system_fonts=True, dpi=96
        )
    )


def on_white(encoded: bytes) -> Image.Image:
    """An encoded image as large as fits into DRAWN x DRAWN pixels, in the middle of a white square.

    Nearly all are squares of this size; a few icons are a little narrower, a few renders larger.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        image = image.convert("RGBA")
    image.thumbnail((DRAWN, DRAWN), Image.Resampling.BOX)
    square = Image.new("RGBA", (DRAWN, DRAWN), (255, 255, 255, 255))
    place = (DRAWN - image.width) // 2, (DRAWN - image.height) // 2
    square.alpha_composite(image, place)
    return square.convert("RGB")


class Pictures:
    """The pictures of a style."""

    def __init__(self, style: str, folder: Path):
        """Reads the package of the style, from `folder` or into it."""
        path = fetch(ART[style].package, folder)
        self._files: dict[str, bytes] = {}
        self._names: dict[str, str] = {}
        if style == "3d":
            self._files = {
                plain(Path(name).stem): data
                for name, data in members(path).items()
                if name.startswith("assets/") and name.endswith(".webp")
            }
            return
        found = members(path, ("icons.json", "chars.json"))
        self._icons = json.loads(found["icons.json"])
        self._names = {plain(code): name for code, name in json.loads(found["chars.json"]).items()}

    @property
    def codes(self) -> set[str]:
        """What it has pictures of."""
        return {*self._files, *self._names}

    def image(self, code: str, size: int) -> Image.Image:
        """The picture of a code, RGB on white, `size` pixels wide and high."""
        data = self._files.get(code) or rasterise(svg(self._icons, self._names[code]))
        image = on_white(data)
        return image if size == DRAWN else image.resize((size, size), Image.Resampling.BOX)


def webp(image: Image.Image, **options: Any) -> bytes:
    """A picture as WebP, as small as the encoder can make it."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", method=6, **options)
    return stream.getvalue()


#: How each sheet is encoded. WebP with loss halves the resolution of colour, which shows at the
#: edges of drawings; the renders have few, and would take three times the bytes without loss.
ENCODING = {
    "noto": {"lossless": True, "quality": 100},
    "flat": {"lossless": True, "quality": 100},
    "3d": {"quality": 95},
    "high_contrast": {"lossless": True, "quality": 100},
}


# ---- the two sets


def chosen() -> list[str]:
    """The codes of the embedded concepts, in their order."""
    lines = (HERE / "concepts.txt").read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines]


def concept_lines(concepts: Sequence[Concept]) -> str:
    """The file concepts.json: a list, one concept a line."""
    lines = (json.dumps(concept.__dict__, ensure_ascii=False) for concept in concepts)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def make_sheets(packages: Path) -> dict[str, bytes]:
    """The files of the package by name: concepts.json, and a sheet for each style."""
    names, codes = read_names(packages), chosen()
    if unique_names(codes, names) != codes:
        raise InputError("concepts.txt: a concept has no name of its own in each language")
    concepts = [Concept(code, *(names[language][code] for language in LANGUAGES)) for code in codes]
    files = {"concepts.json": concept_lines(concepts).encode()}
    with Progress(len(codes) * len(emoji_set.STYLES), "sheets", unit="picture") as progress:
        for style in emoji_set.STYLES:
            assert ART[style.name].licence in PERMISSIVE
            pictures = Pictures(style.name, packages)
            rows = -(-len(codes) // COLUMNS)
            sheet = Image.new("RGB", (COLUMNS * TILE, rows * TILE), (255, 255, 255))
            for number, code in enumerate(codes):
                row, column = divmod(number, COLUMNS)
                sheet.paste(pictures.image(code, TILE), (column * TILE, row * TILE))
                progress.update()
            files[f"{style.name}.webp"] = webp(sheet, **ENCODING[style.name])
    return files


def all_concepts(packages: Path, pictures: Iterable[Pictures]) -> list[Concept]:
    """All concepts that every style has, but flags: the embedded ones first, then by Unicode."""
    names = read_names(packages)
    file = "data-by-emoji.json"
    entries = json.loads(members(fetch(EMOJI, packages), [file])[file])
    listed = [code_of(text) for text, entry in entries.items() if entry["group"] != "Flags"]
    drawn = set.intersection(*(each.codes for each in pictures))
    first = chosen()
    codes = first + [code for code in listed if code in drawn and code not in set(first)]
    kept = unique_names(codes, names)
    return [Concept(code, *(names[language][code] for language in LANGUAGES)) for code in kept]


def make_folder(
    packages: Path, out: Path, styles: Sequence[Style], size: int, embedded: bool
) -> None:
    """Writes `out`/train and `out`/held_out, each a folder with captions.jsonl.

    The concepts are those that all styles have, or the `embedded` ones alone.
    """
    pictures = {style.name: Pictures(style.name, packages) for style in styles}
    # Of fewer styles the concepts are those of all, so that their numbers are the same.
    every = [pictures.get(name) or Pictures(name, packages) for name in ART]
    concepts = all_concepts(packages, every)[: len(chosen()) if embedded else None]
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    with (
        atomic_path(out) as folder,
        Progress(len(concepts) * len(styles), "folder", unit="picture") as progress,
    ):
        for number, concept in enumerate(concepts):
            for style in styles:
                held_out = emoji_set.is_held_out(number, STYLES.index(style))
                split = "held_out" if held_out else "train"
                file = f"{style.name}/{concept.code}.webp"
                path = folder / split / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(webp(pictures[style.name].image(concept.code, size), quality=90))
                captions = [emoji_set.caption(concept, style, each) for each in LANGUAGES]
                lines[split].append(
                    json.dumps({"file": file, "captions": captions}, ensure_ascii=False)
                )
                progress.update()
        for split, listing in lines.items():
            text = "\n".join(listing) + "\n"
            (folder / split / "captions.jsonl").write_text(text, encoding="utf-8")
        (folder / "NOTICE").write_text(folder_notice(styles), encoding="utf-8")
    counts = ", ".join(f"{len(listing)} in {out / split}" for split, listing in lines.items())
    print(f"{len(concepts)} concepts in {len(styles)} styles: {counts}")


def folder_notice(styles: Sequence[Style]) -> str:
    """Where the pictures of a folder come from, and on which terms."""
    lines = [
        f"{style.name}: {ART[style.name].origin}; {ART[style.name].licence}" for style in styles
    ]
    head = "Emoji on white, and their names. Who passes the pictures on keeps to their licences."
    tail = "captions.jsonl: Unicode CLDR 48.2, Unicode, Inc.; Unicode-3.0"
    return "\n".join([head, "", *lines, tail, ""])


# ---- the command


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="examples/emoji/make.sh",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sheets = commands.add_parser("sheets", help="the sheets of the package")
    sheets.add_argument("--out", type=Path, default=emoji_set.FOLDER)
    sheets.add_argument(
        "--check", action="store_true", help="write nothing; fail where the files there differ"
    )
    folder = commands.add_parser("folder", help="the large set, a folder of images with captions")
    folder.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    folder.add_argument("--size", type=int, default=DRAWN, help="pixels, 16 to 256 (default: 256)")
    folder.add_argument(
        "--styles",
        default=",".join(ART),
        help=f"some of {','.join(ART)} (default: all).\nThe last two are CC-BY and CC-BY-SA",
    )
    folder.add_argument(
        "--embedded", action="store_true", help="only the 256 concepts of the package"
    )
    for command in (sheets, folder):
        command.add_argument(
            "--packages",
            type=Path,
            default=ROOT / ".cache" / "emoji" / "packages",
            help="where the npm packages are kept (default: .cache/emoji/packages)",
        )
    return parser


def run(options: argparse.Namespace) -> None:
    """Does what the command line says; raises InputError."""
    if options.command == "sheets":
        for name, data in make_sheets(options.packages).items():
            path = options.out / name
            if options.check:
                if not path.is_file() or path.read_bytes() != data:
                    raise InputError(f"{path}: not what the packages give")
                continue
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
            print(f"{path}: {len(data):,} bytes")
        return
    if not 16 <= options.size <= DRAWN:
        raise InputError(f"--size {options.size}: expected 16 to {DRAWN}")
    if os.path.lexists(options.out):
        raise InputError(f"--out {options.out}: is there already; name a new folder, or delete it")
    check_folder_output(options.out, "--out")
    names = options.styles.split(",")
    for name in names:
        if name not in ART:
            raise InputError(f"--styles {options.styles}: choices are {', '.join(ART)}")
    styles = [style for style in STYLES if style.name in names]
    make_folder(options.packages, options.out, styles, options.size, options.embedded)


def main() -> None:
    """Runs the command; what the user can mend is one line."""
    try:
        run(_parser().parse_args())
    except (InputError, SystemFault) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
