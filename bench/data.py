"""Measures how fast images are read: from a folder, tars and Parquet, and beside torch's loader.

    .venv/bin/python -m bench.data [--images N] [--rounds N] [--torch PYTHON] [--folder DIR]

JPEGs of 640 x 480 pixels, made up with the spectrum and the edges of photographs, are read,
cropped to their central square and scaled to 256 pixels, and nothing else: no step is trained. A
round is one pass of each contender over all images, one after the other, in an order that turns
from round to round; the clock of a pass starts with its first batch. The command prints the images
a second of each, the milliseconds of processor time that an image takes, and the median and the
range over rounds of the ratio of the seconds to those of the folder read by this package. It writes
bench/results/data.json.

`--torch` names a Python with torch, numpy and Pillow, which this package does not need, such as
that of `python -m venv v && v/bin/pip install torch numpy pillow`. There,
torch.utils.data.DataLoader reads the same files with two worker processes by the same calls of
Pillow, and its pixels have to be the same. Without it that row is left out, and a line says so.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogview_jax.data.loader import batches
from cogview_jax.data.records import Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.parquet import Parquet
from cogview_jax.data.sources.source import SourceConfig
from cogview_jax.data.sources.webdataset import WebDataset
from cogview_jax.data.transforms import SquareView

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "data.json"
HEIGHT, WIDTH, SIDE, BATCH, WORKERS = 480, 640, 256, 32, 2
#: Images of a tar and of a row group.
SHARD = 128

#: The program of torch's side. It reads a folder's names once, says that it is ready, and makes a
#: pass for each line that it is given; the answer is the seconds, those of processor time of all
#: its processes, and the sum of all pixels.
TORCH = f"""
import multiprocessing, os, sys, time
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class Images(torch.utils.data.Dataset):
    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*.jpg"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with Image.open(self.files[i]) as file:
            image = file.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize(({SIDE}, {SIDE}), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image))


def processor_time():
    # Seconds of this process and its workers.
    fields = [
        Path(f"/proc/{{child.pid}}/stat").read_text().rpartition(")")[2].split()
        for child in multiprocessing.active_children()
    ]
    ticks = sum(int(own[11]) + int(own[12]) for own in fields)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(
        Images(sys.argv[1]), {BATCH}, shuffle=True, num_workers={WORKERS},
        persistent_workers=True, drop_last=True,
    )
    print("ready", flush=True)
    for _ in sys.stdin:
        total, began = 0, None
        for batch in loader:
            total += int(batch.sum())
            began = began or (time.perf_counter(), processor_time())
        print(time.perf_counter() - began[0], processor_time() - began[1], total, flush=True)
"""


def main() -> None:
    """Makes the images, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch", default="", help="a Python with torch, numpy and Pillow")
    parser.add_argument("--folder", default=None, help="where the images are made; removed after")
    flags = parser.parse_args()
    if flags.images < 2 * BATCH or flags.images % BATCH:
        parser.error(
            f"--images {flags.images}: expected a multiple of {BATCH}, at least {2 * BATCH}"
        )
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder, contextlib.ExitStack() as stack:
        sources = written(Path(folder), flags.images)
        passes = {
            name: stack.enter_context(ours(source, flags.images, Path(folder)))
            for name, source in sources.items()
        }
        if flags.torch:
            passes["torch"] = stack.enter_context(theirs(flags.torch, Path(folder)))
        else:
            print("torch's loader is not measured: --torch names a Python that has it")
        result = measured(passes, flags.images, flags.rounds)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def photograph(number: int) -> np.ndarray:
    """uint8 [480, 640, 3]: noise whose amplitude falls as 1 / frequency, and things with edges.

    JPEGs of it at quality 90 take about 100 kB, as photographs do.
    """
    rng = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    noise = np.stack(
        [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH))) / frequency)] * 3, -1
    )
    noise += 0.2 * noise.std() * rng.standard_normal((1, 1, 3))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(12):
        (row, column), radius = rng.uniform(0, (HEIGHT, WIDTH)), rng.uniform(20, 140)
        inside = np.hypot(y - row, x - column) < radius
        noise[inside] += noise.std() * rng.standard_normal(3)
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def written(folder: Path, count: int) -> dict[str, SourceConfig]:
    """The images as a folder, as tars and as Parquet, and the sources that read them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("images", "tars", "parquet"):
        (folder / name).mkdir()
    for first in range(0, count, SHARD):
        rows = []
        with tarfile.open(folder / "tars" / f"{first:06}.tar", "w") as tar:
            for i in range(first, min(first + SHARD, count)):
                stream, caption = io.BytesIO(), f"caption {i}"
                Image.fromarray(photograph(i)).save(stream, "JPEG", quality=90)
                data = {"jpg": stream.getvalue(), "txt": caption.encode()}
                rows.append({"image": {"bytes": data["jpg"], "path": None}, "text": caption})
                for ending, content in data.items():
                    (folder / "images" / f"{i:06}.{ending}").write_bytes(content)
                    entry = tarfile.TarInfo(f"{i:06}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        pq.write_table(
            pa.Table.from_pylist(rows),
            folder / "parquet" / f"{first:06}.parquet",
            compression={"image.bytes": "NONE"},
            use_dictionary=False,
        )
    return {
        "folder": Folder(path=str(folder / "images")),
        "tars": WebDataset(path=str(folder / "tars")),
        "parquet": Parquet(path=str(folder / "parquet")),
    }


#: Reads all images once: the seconds, those of processor time, and the sum of all pixels.
Pass = Callable[[], tuple[float, float, int]]


@contextlib.contextmanager
def ours(config: SourceConfig, count: int, folder: Path) -> Iterator[Pass]:
    """A pass of the loader of this package, with as many threads as torch has workers."""
    view = SquareView(SIDE)

    def row(record: Record, generator: np.random.Generator) -> np.ndarray:
        return view(record.image, generator)

    source, log = config.open(), SkippedLog(folder / "log")

    def once() -> tuple[float, float, int]:
        stream = batches(
            source, global_batch=BATCH, seed=0, transform=row, skipped=log, threads=WORKERS
        )
        total = int(next(stream).sum())
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(1, count // BATCH):
            total += int(next(stream).sum())
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        stream.close()
        return seconds, busy, total

    yield once


@contextlib.contextmanager
def theirs(python: str, folder: Path) -> Iterator[Pass]:
    """A pass of torch's loader, whose workers stay from pass to pass."""
    program = folder / "torch_images.py"
    program.write_text(TORCH)
    command = [python, str(program), str(folder / "images")]
    pipe: Any = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdin
    assert process.stdout
    if process.stdout.readline().strip() != "ready":
        sys.exit(f"--torch {python}: expected a Python with torch, numpy and Pillow")

    def once() -> tuple[float, float, int]:
        process.stdin.write("pass\n")
        process.stdin.flush()
        seconds, busy, total = process.stdout.readline().split()
        return float(seconds), float(busy), int(total)

    yield once
    process.stdin.close()
    process.wait()


def measured(passes: dict[str, Pass], images: int, rounds: int) -> dict[str, Any]:
    """Rounds over all contenders after a first one that does not count, and what came out."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    processor: dict[str, list[float]] = {name: [] for name in passes}
    names, totals = list(passes), set()
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took, busy, total = passes[name]()
            totals.add(total)
            if turn:
                seconds[name].append(took)
                processor[name].append(busy)
    assert len(totals) == 1, f"contenders have read different pixels: {totals}"
    folder, counted, found = seconds["folder"], images - BATCH, {}
    for name, own in seconds.items():
        ratios = sorted(other / mine for other, mine in zip(own, folder, strict=True))
        found[name] = {
            "images_a_second": round(counted / statistics.median(own), 1),
            "processor_ms": round(1000 * statistics.median(processor[name]) / counted, 2),
            "folder_is_faster": round(statistics.median(ratios), 3),
            "range": [round(ratios[0], 3), round(ratios[-1], 3)],
        }
    return {"images": images, "rounds": rounds, "batch": BATCH, "workers": WORKERS, **found}


if __name__ == "__main__":
    main()
