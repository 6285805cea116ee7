"""Makes a captioned folder of Fashion-MNIST, for `data.source.kind=folder`.

    apt-get download dataset-fashion-mnist
    dpkg-deb -x dataset-fashion-mnist_*.deb package
    .venv/bin/python examples/fashion/make.py --out runs/fashion/data \\
        --files package/usr/share/datasets/fashion-mnist

--files names the folder with the four files of the set, as the Debian package has them; by default
it is where the package is installed. Pictures are inverted, so that an article lies on white, and
get a white margin: 28 x 28 pixels become 32 x 32. Each has a caption in English and one in Chinese
(`cogview_jax.data.fashion_set`). The first pictures of both splits are taken, in their order.
"""

import argparse
import gzip
import json
import math
import os
import sys
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cogview_jax.data import fashion_set  # noqa: E402
from cogview_jax.data.fashion_set import CLASSES, LANGUAGES, Shown  # noqa: E402
from cogview_jax.runtime.errors import InputError, SystemFault  # noqa: E402
from cogview_jax.runtime.files import atomic_path, check_folder_output  # noqa: E402
from cogview_jax.runtime.progress import Progress  # noqa: E402

#: Where the Debian package has its files, and what those of a split begin with.
FILES = Path("/usr/share/datasets/fashion-mnist")
SPLITS = {"train": "train", "test": "t10k"}
#: Rows and columns of a picture in the files, and the margin it gets.
SIDE, MARGIN = 28, 2
#: Bytes of an unpacked file: 60,000 pictures have 47 MB.
LIMIT = 1 << 30
NOTICE = """Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist
Copyright 2017 Zalando SE, https://tech.zalando.com
MIT licence. Pictures are inverted and have a margin; captions say what their pixels show.
"""


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The array uint8 of a gzipped idx file: a header of big-endian sizes, then all values.

    Raises:
        InputError: the file is missing, cut off, or another one.
    """
    given = f"{path}: expected a file of the package dataset-fashion-mnist"
    try:
        with gzip.open(path) as file:
            data = file.read(LIMIT)
    except FileNotFoundError:
        raise InputError(f"{given}, there is none; --files names their folder") from None
    except EOFError:
        raise InputError(f"{given}, this one is cut off") from None
    except (OSError, zlib.error) as error:
        raise InputError(f"{given}: {error}") from None
    start = 4 * (1 + axes)
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) < start:
        raise InputError(f"{given}: no idx file of bytes with {axes} axes")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", axes, offset=4))
    if math.prod(shape) != len(data) - start:
        found, told = len(data) - start, " x ".join(map(str, shape))
        raise InputError(f"{given}: {found:,} bytes of values, but its header says {told}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_split(
    files: Path, split: str
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """The pictures of a split as they are in its files, and their labels; raises InputError."""
    name = SPLITS[split]
    path, label_path = (
        files / f"{name}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")
    )
    pictures, labels = read_idx(path, 3), read_idx(label_path, 1)
    if pictures.shape[1:] != (SIDE, SIDE):
        rows, columns = pictures.shape[1:]
        raise InputError(f"{path}: pictures of {rows} x {columns} pixels, expected {SIDE} x {SIDE}")
    if len(labels) != len(pictures):
        raise InputError(f"{label_path}: {len(labels)} labels, but {len(pictures)} pictures")
    if labels.size and labels.max() >= len(CLASSES):
        raise InputError(f"{label_path}: label {labels.max()}, expected 0 to {len(CLASSES) - 1}")
    return pictures, labels


def on_white(picture: UInt8[np.ndarray, "28 28"]) -> UInt8[np.ndarray, "32 32"]:
    """A picture as it was taken, dark on white, with its margin."""
    return np.pad(255 - picture, MARGIN, constant_values=255)


def make_folder(files: Path, out: Path, counts: dict[str, int]) -> None:
    """Writes `out`/train and `out`/test, each a folder with captions.jsonl; raises InputError.

    Args:
        files: the folder with the files of the set.
        out: a folder that is not there yet.
        counts: how many pictures of each split are taken.
    """
    found = {split: read_split(files, split) for split in SPLITS}
    for split, count in counts.items():
        if not 1 <= count <= len(found[split][0]):
            given, most = " ".join(map(str, counts.values())), len(found[split][0])
            raise InputError(f"--count {given}: {split} has 1 to {most} pictures")
    with (
        atomic_path(out) as folder,
        Progress(sum(counts.values()), "folder", unit="picture") as progress,
    ):
        for split, count in counts.items():
            (folder / split).mkdir(parents=True)
            lines = []
            for number, (picture, label) in enumerate(zip(*found[split], strict=True)):
                if number == count:
                    break
                image = Image.fromarray(on_white(picture))
                pixels = np.asarray(image.convert("RGB"))
                shown = Shown(int(label), fashion_set.tone_of(pixels), fashion_set.shape_of(pixels))
                captions = [fashion_set.caption(shown, each) for each in LANGUAGES]
                file = f"{number:05}.png"
                image.save(folder / split / file)
                lines.append(json.dumps({"file": file, "captions": captions}, ensure_ascii=False))
                progress.update()
            text = "\n".join(lines) + "\n"
            (folder / split / "captions.jsonl").write_text(text, encoding="utf-8")
        (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")
    print(", ".join(f"{count} pictures in {out / split}" for split, count in counts.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument(
        "--files", type=Path, default=FILES, help=f"the folder of the files (default: {FILES})"
    )
    parser.add_argument(
        "--count",
        type=int,
        nargs=2,
        default=(20_000, 2_000),
        metavar=("TRAIN", "TEST"),
        help="pictures of each split (default: 20000 2000; there are 60000 and 10000)",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Does what the command line says; raises InputError."""
    if os.path.lexists(options.out):
        raise InputError(f"--out {options.out}: is there already; name a new folder, or delete it")
    check_folder_output(options.out, "--out")
    make_folder(options.files, options.out, dict(zip(SPLITS, options.count, strict=True)))


def main() -> None:
    """Runs the command; what the user can mend is one line."""
    try:
        run(_parser().parse_args())
    except (InputError, SystemFault) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
