"""Measures the index of a large set of tars: its size, opening it, and what reading takes.

    .venv/bin/python -m bench.record_index [--records N] [--tars N] [--processes N] [--folder DIR]
    .venv/bin/python -m bench.record_index --images N [--folder DIR]

Images of a few tars are made up, and an index in which each of them stands for many records, so
that the index is that of `--records` records (30 million) without their bytes. Then processes
open it at once and read random records. For each the command prints the seconds to open, those to
the first batch of the training loader, and its private memory (Private_Clean and Private_Dirty of
/proc/self/smaps_rollup): after the imports, after opening, and after reading. It also measures how
fast a real tar is indexed, with one and with several workers, and with threads instead of
processes. It writes bench/results/record_index.json.

With `--images` it measures a folder of so many images instead, without a listing, 1,000 in each
of its folders: with a list of their paths in memory, while the index is made, and with the index.
The files are links to a few, so that they take little space.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from cogview_jax.data import record_index_writer
from cogview_jax.data.record_index_writer import IndexPart
from cogview_jax.data.sources import folder_index, webdataset
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.data.sources.tar_entries import TarFile
from cogview_jax.data.sources.webdataset_samples import SampleScan, samples

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "record_index.json"
#: Images of a tar, random records that a process reads, and samples of a tar that is indexed.
IMAGES, READS, SAMPLES = 100, 20_000, 10_000
#: Images in a folder, which are links to one file.
LINKS = 1_000
MB = 1e6


@dataclass(frozen=True)
class SharedScan(SampleScan):
    """As its base, but the samples of a tar come again until there are RECORDS_A_TAR records."""

    def __call__(self, path: str, part: IndexPart) -> None:
        """Adds the records of the tar at `path`."""
        with TarFile(path) as tar:
            found = list(samples(tar, part.findings.ignored))
        part.findings.counts["repeated"] += 0
        for i in range(int(os.environ["RECORDS_A_TAR"])):
            image = found[i % len(found)].entries["jpg"]
            key = f"{i:09d}"
            caption = f"made-up caption {i} of about as many letters as people write in one"
            part.add(key, [caption], image.offset, image.size)


def main() -> None:
    """Makes the set, measures and prints; with "measure", measures one process."""
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measured(sys.argv[2])))
        return
    if sys.argv[1:2] == ["measure_folder"]:
        print(json.dumps(measured_folder(sys.argv[2], int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=30_000_000)
    parser.add_argument("--tars", type=int, default=30)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--folder", default=None, help="where the set is made; removed after")
    parser.add_argument("--images", type=int, default=0, help="measures a folder of so many")
    flags = parser.parse_args()
    if flags.images:
        with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
            print(json.dumps(folders(Path(folder), flags.images), indent=2))
        return
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        result = {"indexing": indexing(Path(folder, "real"))}
        shared = Path(folder, "shared")
        shared.mkdir()
        for n in range(flags.tars):
            write_tar(shared / f"{n:05}.tar", IMAGES)
        result["making"] = made_up(shared, flags.records // flags.tars)
        began = time.perf_counter()
        command = [sys.executable, "-m", "bench.record_index", "measure", str(shared)]
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(flags.processes)
        ]
        result["processes"] = [json.loads(process.communicate()[0]) for process in running]
        result["all_seconds"] = time.perf_counter() - began
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def write_tar(path: Path, count: int) -> None:
    """Writes a tar of small JPEGs with a .txt and a .json each."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            caption = f"a caption of image {i}"
            fields = {"caption": caption, "url": f"https://example.org/{i}", "width": 64}
            contents = {"jpg": stream.getvalue(), "json": json.dumps(fields).encode()}
            for ending, data in (contents | {"txt": caption.encode()}).items():
                info = tarfile.TarInfo(f"{i:09d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def indexing(folder: Path) -> dict[str, float]:
    """Seconds to index eight tars of SAMPLES samples in different ways; all are in memory."""
    folder.mkdir()
    for n in range(8):
        write_tar(folder / f"{n}.tar", SAMPLES)
    found = {"samples": 8 * SAMPLES}
    threads = {"computed": in_threads}
    ways = {"one process": (1, {}), "two processes": (2, {}), "two threads": (2, threads)}
    for name, (processes, changes) in ways.items():
        changes = changes | {"cores": lambda count=processes: count, "_SMALL": 0}
        with mock.patch.multiple(record_index_writer, **changes):
            began = time.perf_counter()
            webdataset.WebDataset(path=str(folder), index=f"{folder}/{name}").open()
            found[name] = time.perf_counter() - began
    return found


def in_threads(function, arguments, processes, what):
    """`workers.computed`, in threads of this process."""
    with ThreadPoolExecutor(processes) as pool:
        yield from pool.map(function, arguments)


def made_up(folder: Path, records: int) -> dict[str, float]:
    """Makes the index of a set in which the images of a tar stand for many records."""
    from bench.record_index import SharedScan  # not of __main__, which workers do not know

    os.environ["RECORDS_A_TAR"] = str(records)
    began = time.perf_counter()
    changes = {"_SMALL": 0}
    with (
        mock.patch.object(webdataset, "SampleScan", SharedScan),
        mock.patch.multiple(record_index_writer, **changes),
    ):
        source = webdataset.WebDataset(path=str(folder)).open()
    seconds = time.perf_counter() - began
    sizes = {path.name: path.stat().st_size for path in source._index.folder.iterdir()}
    return {"records": len(source), "seconds": seconds} | sizes


def private() -> float:
    """The private memory of this process in MB: what no other one shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    fields = (line.split() for line in lines)
    return sum(int(field[1]) for field in fields if field[0].startswith("Private_")) * 1024 / MB


def folders(root: Path, count: int) -> dict[str, dict[str, float]]:
    """What processes see of a folder of images: in memory, as the first, and as the second."""
    for n in range(count):
        place = root / f"{n // LINKS:05}"
        if n % LINKS == 0:
            place.mkdir()
            one = place / f"{n:09}.png"
            Image.new("RGB", (4, 3)).save(one)
        else:
            os.link(one, place / f"{n:09}.png")
    found = {}
    ways = {"list": count, "index, first": 0, "index, again": 0}
    for name, in_memory in ways.items():
        command = [sys.executable, "-m", "bench.record_index", "measure_folder", str(root)]
        made = subprocess.run([*command, str(in_memory)], stdout=subprocess.PIPE, check=True)
        found[name] = json.loads(made.stdout)
    return found


def measured_folder(folder: str, in_memory: int) -> dict[str, float]:
    """What a process sees of a folder that has a list if it holds at most `in_memory` images."""
    folder_index.IN_MEMORY = in_memory
    found = {"imported_mb": private()}
    began = time.perf_counter()
    source = FolderSource(folder, require_captions=False)
    found |= {"open_seconds": time.perf_counter() - began, "opened_mb": private()}
    numbers = np.random.default_rng(0).integers(0, len(source), READS // 10)
    began = time.perf_counter()
    for i in numbers:
        source[int(i)]
    found["records_a_second"] = READS // 10 / (time.perf_counter() - began)
    return found | {"read_mb": private()}


def measured(folder: str) -> dict[str, float]:
    """What a process sees of the set."""
    found = {"imported_mb": private()}
    began = time.perf_counter()
    source = webdataset.WebDataset(path=folder).open()
    found |= {"open_seconds": time.perf_counter() - began, "opened_mb": private()}
    numbers = np.random.default_rng(os.getpid()).integers(0, len(source), READS)
    began = time.perf_counter()
    for i in numbers:
        source.captions(int(i))
    found["captions_a_second"] = READS / (time.perf_counter() - began)
    began = time.perf_counter()
    for i in numbers[: READS // 10]:
        source[int(i)]
    found["records_a_second"] = READS // 10 / (time.perf_counter() - began)
    found["read_mb"] = private()
    from cogview_jax.data.loader import batches
    from cogview_jax.data.skipped import SkippedLog

    with tempfile.TemporaryDirectory() as log:
        settings = {"global_batch": 64, "seed": 0, "skipped": SkippedLog(log)}
        before, began = private(), time.perf_counter()
        stream = batches(source, transform=lambda record, _: record.image, **settings)
        next(stream)
        found["first_batch_seconds"] = time.perf_counter() - began
        for _ in range(50):
            next(stream)
        found["loader_mb"] = private() - before
        stream.close()
    return found


if __name__ == "__main__":
    main()
