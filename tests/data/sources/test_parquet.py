"""Parquet files of captioned images: where pyarrow finds each, and all that can be wrong."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cogview_jax.data.record_index import NO_PLACE
from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources import parquet_rows, parquet_scan
from cogview_jax.data.sources.parquet import Parquet
from cogview_jax.data.sources.source import captions_of, readable
from cogview_jax.runtime.errors import InputError
from table_files import FIXTURES, HUGGING_FACE, image_table, write_parquet
from tar_files import png


def source(path, **settings):
    return Parquet(path=str(path), **settings).open()


def test_a_file_of_the_datasets_library(tmp_path):
    found = source(FIXTURES / "hugging_face.parquet", index=str(tmp_path))
    assert len(found) == 5
    assert found.key(3) == found[3].key == "hugging_face.parquet/3"
    assert found[3].captions == captions_of(found, 3) == ("number 3",)
    np.testing.assert_array_equal(found[3].image, np.full((8, 6, 3), (3, 1, 2), np.uint8))
    said = "5 records of 1 Parquet file, 5 with a caption; nothing ignored"
    assert found.describe() == said
    tags = source(
        FIXTURES / "hugging_face.parquet", index=str(tmp_path), caption_keys=("tags", "text")
    )
    assert tags[4].captions == ("a", "4", "number 4")


@pytest.mark.parametrize(
    "options",
    [
        HUGGING_FACE,
        HUGGING_FACE | {"data_page_version": "2.0"},
        HUGGING_FACE | {"data_page_size": 300, "write_batch_size": 4},
        HUGGING_FACE | {"data_page_version": "2.0", "data_page_size": 300, "write_batch_size": 4},
        HUGGING_FACE | {"row_group_size": 7, "write_page_checksum": True, "write_page_index": True},
        HUGGING_FACE | {"use_content_defined_chunking": True},
        HUGGING_FACE | {"version": "1.0", "write_statistics": False},
    ],
    ids=lambda options: " ".join(map(str, [*options.values()][2:])) or "as datasets",
)
@pytest.mark.parametrize("nested", [True, False, "required"])
def test_every_place_holds_what_pyarrow_reads(tmp_path, options, nested):
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 4000, 60)
    images = [rng.bytes(int(size)) for size in sizes]
    if nested is True:
        images = [{"bytes": each, "path": None} for each in images]
        images[7], images[41]["bytes"], images[42] = None, None, None
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    else:
        kind = pa.binary()
        images[50] = None if not nested else images[50]
    field = pa.field("image", kind, nullable=nested != "required")
    table = pa.Table.from_arrays(
        [pa.array(images, kind), pa.array(map(str, range(60)))],
        schema=pa.schema([field, ("text", pa.string())]),
    )
    if nested is not True:
        options = options | {"compression": {"image": "NONE"}}
    path = write_parquet(tmp_path / "a.parquet", table, **options)
    index = source(path)._index
    rows = pq.read_table(path).column("image").to_pylist()
    assert len(index) == 60
    for i, row in enumerate(rows):
        expected = row["bytes"] if isinstance(row, dict) else row
        if expected is None:
            with pytest.raises(BadRecord, match=f"a.parquet/{i}: no image: its bytes are null"):
                index[i]
            continue
        record = index[i]
        assert (record.size, record.captions) == (len(expected), (str(i),))
        assert index.read(record) == expected


PACKED = [{"compression": "snappy"}, {"compression": "NONE"}, {"use_dictionary": False}]


@pytest.mark.parametrize("options", PACKED, ids=["usual", "dictionary", "compressed"])
def test_packed_images_are_read_by_row_groups(tmp_path, monkeypatch, options):
    monkeypatch.setattr(parquet_rows, "_KEPT", 1)
    monkeypatch.setattr(parquet_rows, "_OPEN", 1)
    for n in range(2):
        table = image_table([0, 1, None, 3, 4, 5, 6])
        path = write_parquet(tmp_path / f"{n}.parquet", table, row_group_size=3, **options)
    found = source(tmp_path)
    assert found._index[0].size == NO_PLACE
    said = "14 records of 2 Parquet files, 14 with a caption; 14 images (in 2 files) are compressed"
    assert found.describe().startswith(said)
    for i in [5, 0, 13, 7, 1, 3, 4, 10]:
        assert found[i].image[0, 0].tolist() == [i % 7, 1, 2]
        assert found[i].captions == (f"number {i % 7}",)
    with pytest.raises(BadRecord, match=r"1.parquet/2: no image: its bytes are null"):
        found[9]
    assert len(found._packed._groups) == len(found._packed._files) == 1
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    found._packed._files.clear()
    found._packed._groups.clear()
    with pytest.raises(InputError, match=r"1.parquet: changed while it was read"):
        found[8]


def test_row_groups_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_scan, "GROUP_LIMIT", 100)
    write_parquet(tmp_path / "a.parquet", image_table(range(9)), compression="zstd")
    with pytest.raises(
        InputError, match=r"a.parquet: a row group of 0 MB of packed images \(zstd, enc"
    ):
        source(tmp_path)
    write_parquet(tmp_path / "a.parquet", image_table(range(9)))
    assert len(source(tmp_path)) == 9


def test_what_img2dataset_writes(tmp_path):
    table = pa.table(
        {
            "key": ["0", "1", "2"],
            "jpg": [png(1), None, png(3)],
            "txt": ["one", None, "three"],
            "caption": ["one", "two", "three"],
            "status": ["success", "failed_to_download", "success"],
            "error_message": [None, "404", None],
            "exif": ["{}", None, "{}"],
        }
    )
    pq.write_table(table, tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    found = source(tmp_path)
    assert [found[i].captions for i in range(2)] == [("one",), ("three",)]
    assert found[1].key == "00000.parquet/2"
    assert found[1].image[0, 0].tolist() == [3, 1, 2]
    said = "; 2 images (in 1 file) are compressed"
    assert said in found.describe()
    assert "1 rows whose image could not be fetched (status) (row 1)" in found.describe()


def test_bad_rows_keep_their_place(tmp_path):
    table = image_table(
        [0, None, 2, 3, 4], text=["zero", "one", None, "three", "x" * ((1 << 20) + 1)]
    )
    bytes_of = table.column("image").to_pylist()
    bytes_of[3]["bytes"] = png(3)[:40]
    table = table.set_column(0, "image", pa.array(bytes_of, table.schema.field("image").type))
    write_parquet(tmp_path / "a.parquet", table)
    found = source(tmp_path)
    assert len(found) == 5
    assert found[0].captions == ("zero",)
    for i, message in [
        (1, "no image: its bytes are null"),
        (2, "empty caption"),
        (3, "unreadable image"),
        (4, "captions of 1048577 letters"),
    ]:
        with pytest.raises(BadRecord, match=f"^a.parquet/{i}: {message}"):
            found[i]
        assert found.key(i) == f"a.parquet/{i}"
    assert source(tmp_path, require_captions=False)[2].captions == ()


def test_a_caption_that_is_no_utf8(tmp_path):
    texts = pa.Array.from_buffers(
        pa.string(), 2, pa.array([b"\xff", b"good"], pa.binary()).buffers()
    )
    write_parquet(tmp_path / "a.parquet", image_table([1, 2], text=texts))
    found = source(tmp_path)
    with pytest.raises(BadRecord, match="caption is not UTF-8"):
        found[0]
    assert found[1].captions == ("good",)


COLUMNS = (
    r"columns are image \(struct<bytes: binary, path: string>\), text \(string\), n \(int64\),"
    r" u \(string\)"
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_key": "picture"}, f"a.parquet: no column 'picture'; {COLUMNS}"),
        ({"caption_keys": ("title",)}, f"a.parquet: no column 'title'; {COLUMNS}"),
        ({"caption_keys": ("n",)}, "column 'n' is int64: expected a text or a list of texts"),
        ({"image_key": "n"}, "column 'n' is int64: expected bytes of images, or a struct"),
        (
            {"image_key": "u"},
            "column 'u' holds texts, such as addresses .* `img2dataset .*url_col u",
        ),
    ],
)
def test_columns_that_do_not_fit(tmp_path, settings, message):
    table = image_table([1], n=[3], u=["https://example.org/a.jpg"])
    write_parquet(tmp_path / "a.parquet", table)
    with pytest.raises(InputError, match=message):
        source(tmp_path, **settings)
    assert not list(tmp_path.glob(".cogview-index/*"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_url": ["https://example.org"], "n": [1]}, "'image_url' holds texts, such as addr"),
        ({"n": [1], "label": ["x"]}, r"no column holds images; columns are n \(int64\), label"),
        ({"a": [b"1"], "b": [b"2"]}, r"2 columns of bytes \(a, b\): name that of the images as d"),
        ({"a": [png(1)], "label": ["x"]}, r"1 image and no caption: expected one of caption, .*"),
        ({"image": pa.array([], pa.binary())}, "no row in 1 Parquet file"),
        ({"image": pa.array([None], pa.binary())}, "none of 1 records can be used, such as 0: no"),
    ],
)
def test_tables_without_images_or_captions(tmp_path, columns, message):
    write_parquet(tmp_path / "a.parquet", pa.table(columns), use_dictionary=False)
    if "n" not in columns or "image" in columns:
        options = {"use_dictionary": False, "compression": "NONE"}
        write_parquet(tmp_path / "a.parquet", pa.table(columns), **options)
    with pytest.raises(InputError, match=message) as caught:
        source(tmp_path)
    assert "\n" not in str(caught.value)


def test_every_cut_and_many_flipped_bytes_are_one_line_or_bad_records(tmp_path):
    data = write_parquet(tmp_path / "whole", image_table(range(4))).read_bytes()
    path, rng = tmp_path / "a.parquet", np.random.default_rng(0)
    cuts = [data[:n] for n in range(0, len(data), 293)]
    flips = []
    for place in rng.integers(4, len(data), 20):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.integers(8)
        flips.append(bytes(changed))
    lines = []
    for case in [*cuts, *flips]:
        path.write_bytes(case)
        try:
            list(readable(source(path, index=str(tmp_path / "index"))))
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > len(cuts)
    assert all(str(path) in line and "\n" not in line for line in lines)


def test_one_line_where_pyarrow_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"kind = 'parquet' needs pyarrow: install it with `pip i"):
        source(FIXTURES / "hugging_face.parquet")


def test_nobody_else_imports_pyarrow():
    code = "import sys, cogview_jax.data.sources; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
