"""Tars and tables on a server: the same records as of local ones, by ranges alone."""

import os

import numpy as np
import pytest

from cogview_jax.data.loader import batches
from cogview_jax.data.remote.reader import RemoteConfig
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.parquet import Parquet
from cogview_jax.data.sources.source import listing, opened, readers_of
from cogview_jax.data.sources.webdataset import WebDataset
from cogview_jax.runtime.errors import InputError
from table_files import image_table, write_parquet
from tar_files import png, write_samples, write_tar

NO_CACHE = RemoteConfig(cache_gb=0)


def assert_same_records(one, other):
    assert len(one) == len(other) > 0
    for i in range(len(one)):
        assert one.key(i) == other.key(i)
        assert one[i].captions == other[i].captions
        np.testing.assert_array_equal(one[i].image, other[i].image)


def test_tars_on_a_server_are_those_on_the_disk(server, tmp_path):
    for n in range(3):
        write_samples(tmp_path / f"{n}.tar", range(4 * n, 4 * n + 4))
    remote = WebDataset(path=f"{server.url}/{{0..2}}.tar").open()
    assert not (tmp_path / ".cogview-index").exists()
    local = WebDataset(path=str(tmp_path / "{0..2}.tar")).open()
    assert_same_records(remote, local)
    assert listing(remote) == listing(local)
    assert remote.describe() == local.describe()


def test_images_are_read_alone_and_once(server, tmp_path):
    write_samples(tmp_path / "a.tar", range(5))
    source = WebDataset(path=f"{server.url}/a.tar").open()
    found = source._index[3]
    before = len(server.asked)
    first = source[3]
    end = found.offset + found.size - 1
    assert [request[2] for request in server.asked[before:]] == [f"bytes={found.offset}-{end}"]
    again = WebDataset(path=f"{server.url}/a.tar").open()
    asked = len(server.ranges("/a.tar"))
    np.testing.assert_array_equal(again[3].image, first.image)
    assert len(server.ranges("/a.tar")) == asked
    assert source.captions(2) == ("number 2",)
    assert len(server.ranges("/a.tar")) == asked


def test_without_a_cache_each_is_read_anew(server, tmp_path):
    write_samples(tmp_path / "a.tar", range(2))
    source = WebDataset(path=f"{server.url}/a.tar", remote=NO_CACHE).open()
    before = len(server.ranges("/a.tar"))
    for _ in range(3):
        assert source[0].captions == ("number 0",)
    assert len(server.ranges("/a.tar")) == before + 3
    assert not os.path.exists(os.path.join(os.environ["XDG_CACHE_HOME"], "cogview_jax/remote"))


def test_large_members_are_passed_over(server, tmp_path):
    large = bytes(10 << 20)
    entries = [
        (f"{i}.{end}", data) for i in range(4) for end, data in (("bin", large), ("png", png(i)))
    ]
    path = write_tar(tmp_path / "a.tar", entries)
    source = WebDataset(path=f"{server.url}/a.tar", require_captions=False).open()
    assert [source[i].image[0, 0, 0] for i in range(4)] == [0, 1, 2, 3]
    read = 0
    for part in server.ranges("/a.tar"):
        first, last = map(int, part.removeprefix("bytes=").split("-"))
        read += last + 1 - first
    assert read < path.stat().st_size / 5


def test_an_index_follows_its_tars(server, tmp_path, capsys):
    path = write_samples(tmp_path / "a.tar", range(3))
    address = f"{server.url}/a.tar"
    old = WebDataset(path=address, remote=NO_CACHE).open()
    write_samples(tmp_path / "b.tar", range(5, 9))
    os.replace(tmp_path / "b.tar", path)
    with pytest.raises(InputError, match=r"a\.tar: changed while it was read: start again"):
        old[1]
    assert WebDataset(path=address).open()[0].captions == ("number 5",)
    assert "a.tar was changed: it is made anew" in capsys.readouterr().err
    before = len(server.ranges("/a.tar"))
    WebDataset(path=address).open()
    assert len(server.ranges("/a.tar")) == before


def test_a_cache_does_not_outlive_a_tar(server, tmp_path):
    path = write_samples(tmp_path / "a.tar", range(3))
    address = f"{server.url}/a.tar"
    assert WebDataset(path=address).open()[1].image[0, 0, 0] == 1
    write_samples(tmp_path / "b.tar", range(5, 8))
    os.replace(tmp_path / "b.tar", path)
    assert WebDataset(path=address).open()[1].image[0, 0, 0] == 6


def test_faults_while_indexing_and_reading_cost_no_record(server, tmp_path):
    for n in range(2):
        write_samples(tmp_path / f"{n}.tar", range(4 * n, 4 * n + 4))
    server.faults.extend([503, None, "short", None, "reset", 429])
    source = WebDataset(path=f"{server.url}/{{0..1}}.tar", remote=NO_CACHE).open()
    server.faults.extend(["reset", "short", 502, None, 503])
    assert [source[i].captions[0] for i in range(8)] == [f"number {i}" for i in range(8)]


@pytest.mark.parametrize(
    ("fault", "said"),
    [(404, "404 Not Found: check the address"), (403, "403 Forbidden"), ("whole", "byte ranges")],
)
def test_what_cannot_be_read_is_one_line(server, tmp_path, fault, said):
    write_samples(tmp_path / "0.tar", range(2))
    write_samples(tmp_path / "1.tar", range(2))
    server.always["/1.tar"] = fault
    with pytest.raises(InputError) as caught:
        opened(WebDataset(path=f"{server.url}/{{0..1}}.tar"))
    line = str(caught.value)
    assert line.startswith(f"data.source.path = '{server.url}/{{0..1}}.tar': {server.url}/1.tar: ")
    assert said in line
    assert "\n" not in line
    assert "looked for" not in line


def test_damaged_and_compressed_tars_are_named_as_local_ones(server, tmp_path):
    path = write_samples(tmp_path / "a.tar", range(3))
    with path.open("r+b") as file:
        file.truncate(700)
    with pytest.raises(InputError, match=rf"{server.url}/a.tar: breaks off: .*ends at byte 700"):
        WebDataset(path=f"{server.url}/a.tar").open()
    with pytest.raises(InputError, match="unpack it"):
        WebDataset(path=f"{server.url}/a.tar.gz").open()


def test_a_query_of_the_environment_is_nowhere_on_the_disk(server, tmp_path, monkeypatch):
    write_samples(tmp_path / "a.tar", range(2))
    monkeypatch.setenv("TOKEN", "sig=secret")
    source = WebDataset(path=f"{server.url}/a.tar?$TOKEN").open()
    assert source[1].image[0, 0, 0] == 1
    assert {request[1] for request in server.asked} == {"/a.tar?sig=secret"}
    for folder, _, names in os.walk(os.environ["XDG_CACHE_HOME"]):
        for name in names:
            assert "secret" not in name
            with open(os.path.join(folder, name), "rb") as file:
                assert b"secret" not in file.read()


def test_batches_are_those_of_the_disk_whatever_the_readers(server, tmp_path):
    for n in range(2):
        write_samples(tmp_path / f"{n}.tar", range(10 * n, 10 * n + 10))
    remote = WebDataset(path=f"{server.url}/{{0..1}}.tar", remote=RemoteConfig(requests=7)).open()
    local = WebDataset(path=str(tmp_path / "*.tar")).open()
    assert (readers_of(remote), readers_of(local)) == (7, 1)

    def some(source):
        skipped = SkippedLog(tmp_path / "log")

        def transform(record, generator):
            return {"image": record.image, "noise": generator.random()}

        iterator = batches(source, global_batch=6, seed=3, transform=transform, skipped=skipped)
        found = [next(iterator) for _ in range(9)]
        iterator.close()
        return found

    for one, other in zip(some(remote), some(local), strict=True):
        for name in ("image", "noise"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("options", [{}, {"compression": "snappy", "row_group_size": 3}])
def test_tables_on_a_server_are_those_on_the_disk(server, tmp_path, options):
    for n in range(2):
        numbers = [5 * n, 5 * n + 1, 5 * n + 2, 5 * n + 3]
        write_parquet(tmp_path / f"{n}.parquet", image_table(numbers), **options)
    remote = Parquet(path=f"{server.url}/{{0..1}}.parquet").open()
    server.faults.extend([503, "short", "reset"])
    assert_same_records(remote, Parquet(path=str(tmp_path)).open())


def test_a_file_that_is_no_table(server, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more" * 10)
    with pytest.raises(InputError, match=r"a\.parquet: damaged, or not a Parquet file"):
        Parquet(path=f"{server.url}/a.parquet").open()
    server.always["/a.parquet"] = 403
    with pytest.raises(InputError, match=r"a\.parquet: 403 Forbidden"):
        Parquet(path=f"{server.url}/a.parquet").open()
