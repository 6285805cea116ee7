"""Measures how fast training reads images from a server that takes its time.

    .venv/bin/python -m bench.remote_reading [--delay S] [--requests N,N] [--images N]

Made-up images of 256 pixels lie in eight tars, which a web server in a process of its own gives out
after a delay a request. For each number of requests at a time the command prints the seconds to
index the tars, and the images a second of the training loader in two epochs: the first fetches
them, the second has them from the cache. The last line is that of the same tars as local files.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from cogview_jax.data.loader import batches
from cogview_jax.data.records import Record
from cogview_jax.data.remote.reader import RemoteConfig
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.webdataset import WebDataset

TARS, BATCH = 8, 64


def main() -> None:
    """Makes the tars, measures and prints; with "serve", serves a folder."""
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]), float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--requests", default="1,32", help="requests at a time")
    parser.add_argument("--images", type=int, default=2048)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        tars = Path(folder, "tars")
        tars.mkdir()
        for n in range(TARS):
            write_tar(tars / f"{n}.tar", flags.images // TARS, seed=n)
        with server(tars, flags.delay) as url:
            for requests in map(int, flags.requests.split(",")):
                place = f"{folder}/{requests}"
                remote = RemoteConfig(requests=requests, cache=f"{place}/cache")
                measure(f"{url}/{{0..{TARS - 1}}}.tar", place, remote, flags.images)
        measure(str(tars), f"{folder}/local", RemoteConfig(), flags.images)


def measure(path: str, place: str, remote: RemoteConfig, images: int) -> None:
    """Prints a line about the tars at `path`; what is written lies at `place`."""
    began = time.perf_counter()
    source = WebDataset(path=path, index=f"{place}/index", remote=remote).open()
    indexed = time.perf_counter() - began
    rates = []
    for epoch in range(2):
        log = SkippedLog(f"{place}/log")
        start = epoch * images // BATCH
        made = batches(
            source, global_batch=BATCH, seed=0, transform=square, skipped=log, start=start
        )
        began = time.perf_counter()
        for _ in range(images // BATCH):
            next(made)
        rates.append(images / (time.perf_counter() - began))
        made.close()
    what = f"{remote.requests:3} at a time" if path.startswith("http") else "local files"
    shown = ", ".join(f"{rate:.0f}" for rate in rates)
    load = os.getloadavg()[0]
    print(f"{what}: index {indexed:.1f} s; epochs at {shown} images a second (load {load:.0f})")


def square(record: Record, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """A part of an image."""
    return {"image": record.image[:128, :128]}


def write_tar(path: Path, count: int, seed: int) -> None:
    """Writes a tar of JPEGs of 256 pixels and about 25 kB."""
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            stream = io.BytesIO()
            blurred = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            blurred.resize((256, 256), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
            for ending, data in (("jpg", stream.getvalue()), ("txt", b"a caption")):
                info = tarfile.TarInfo(f"{seed}{i:05}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@contextlib.contextmanager
def server(folder: Path, delay: float) -> Iterator[str]:
    """The URL of a server in a process of its own."""
    command = [sys.executable, "-m", "bench.remote_reading", "serve", str(folder), str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def serve(folder: Path, delay: float) -> None:
    """Serves ranges of the files of a folder."""

    class Ranges(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            time.sleep(delay)
            path = folder / self.path.lstrip("/")
            size = path.stat().st_size
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            last = min(last, size - 1)
            with path.open("rb") as file:
                file.seek(first)
                data = file.read(last + 1 - first)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            """Writes nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    print(f"http://127.0.0.1:{httpd.server_port}", flush=True)
    httpd.serve_forever()


if __name__ == "__main__":
    main()
