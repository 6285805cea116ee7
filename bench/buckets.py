"""Reads tars and tables out of buckets of stand-ins for Amazon's and Google's storage.

    pip install 'cogview-jax[remote,arrow]' 'moto[server]' gcp-storage-emulator
    .venv/bin/python -m bench.buckets s3
    .venv/bin/python -m bench.buckets gs

moto and gcp-storage-emulator answer as the services do, as far as they go. Each way to name files
is compared with the same files on the disk, record by record, and each mistake ends with its line.
The tests use a web server alone, since these packages bring a hundred others.
"""

import contextlib
import io
import logging
import os
import socket
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cogview_jax.data.records import Record
from cogview_jax.data.remote import failures
from cogview_jax.data.sources.parquet import Parquet
from cogview_jax.data.sources.source import Source
from cogview_jax.data.sources.webdataset import WebDataset
from cogview_jax.runtime.errors import InputError

BUCKET = "pictures"
#: What the addresses may say of the tars in BUCKET/set.
WAYS = ("set", "set/", "set/sub/{0..2}.tar", "set/*/[0-2].tar", "**/*.tar")
#: Mistakes, and what their lines say.
MISTAKES = {
    f"{BUCKET}/set/sub/{{2..3}}.tar": "check the address",
    f"{BUCKET}/nothing": "check the address",
    "no-such-bucket/0.tar": "check the address",
    f"{BUCKET}/none*.tar": "there are none",
}


def main() -> None:
    """Starts a stand-in, fills a bucket and compares."""
    if sys.argv[1:] not in (["s3"], ["gs"]):
        raise SystemExit("expected s3 or gs")
    (protocol,) = sys.argv[1:]
    failures.PAUSES = (0.01,)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        tars, table = Path(folder, "set", "sub"), Path(folder, "tables", "0.parquet")
        tars.mkdir(parents=True)
        table.parent.mkdir()
        for n in range(3):
            write_tar(tars / f"{n}.tar", range(4 * n, 4 * n + 4))
        write_table(table)
        with (moto if protocol == "s3" else emulator)() as put:
            for path in (*tars.iterdir(), table):
                put(path.relative_to(folder).as_posix(), path.read_bytes())
            for way in WAYS:
                remote = WebDataset(path=f"{protocol}://{BUCKET}/{way}").open()
                compare(f"{protocol}://{BUCKET}/{way}", remote, WebDataset(path=str(tars)).open())
            remote = Parquet(path=f"{protocol}://{BUCKET}/tables").open()
            compare(f"{protocol}://{BUCKET}/tables", remote, Parquet(path=str(table)).open())
            for path, said in MISTAKES.items():
                line = mistake(f"{protocol}://{path}")
                assert said in line, line
                print(line)


def compare(address: str, one: Source[Record], other: Source[Record]) -> None:
    """Prints a line if two sources have the same captions and images; AssertionError if not."""
    assert len(one) == len(other) > 0, (address, len(one), len(other))
    for i in range(len(one)):
        a, b = one[i], other[i]
        assert a.captions == b.captions
        np.testing.assert_array_equal(a.image, b.image)
    print(f"{address}: {len(one)} records, as on the disk")


def mistake(address: str) -> str:
    """The error line of an address; empty if it can be opened."""
    try:
        WebDataset(path=address).open()
    except InputError as error:
        return str(error)
    return ""


def png(value: int) -> bytes:
    """A small image."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 8), (value, 1, 2)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, numbers: range) -> None:
    """Writes a tar of images with captions."""
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            for ending, data in (("png", png(i)), ("txt", b"number %d" % i)):
                info = tarfile.TarInfo(f"{i:04}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_table(path: Path) -> None:
    """Writes a table of images with captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"image": [png(i) for i in range(5)], "text": [f"number {i}" for i in range(5)]}
    pq.write_table(pa.table(table), path)


@contextlib.contextmanager
def moto() -> Iterator:
    """Gives what puts a file into a bucket of S3's stand-in."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
    }
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield lambda name, data: client.put_object(Bucket=BUCKET, Key=name, Body=data)
    server.stop()


@contextlib.contextmanager
def emulator() -> Iterator:
    """Gives what puts a file into a bucket of Google's stand-in."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    os.environ |= {"STORAGE_EMULATOR_HOST": url, "FSSPEC_GS_TOKEN": "anon"}
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()

    def put(name: str, data: bytes) -> None:
        place = f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}"
        kind = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(urllib.request.Request(place, data, kind)).close()

    yield put
    server.stop()


if __name__ == "__main__":
    main()
