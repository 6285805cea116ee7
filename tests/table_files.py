"""Small tables of captioned images for tests."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tar_files import png

FIXTURES = Path(__file__).parent / "fixtures" / "tables"
#: How Hugging Face's datasets writes columns of images.
HUGGING_FACE = {"compression": {"image.bytes": "NONE"}, "use_dictionary": False}


def image_table(numbers, **columns) -> pa.Table:
    """A column "image" as datasets has it and "text"; None among the numbers is a null image."""
    images = [None if i is None else {"bytes": png(i), "path": f"/etc/{i}"} for i in numbers]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = columns.pop("text", [f"number {i}" for i in numbers])
    return pa.table({"image": pa.array(images, kind), "text": texts} | columns)


def write_parquet(path, table, **options) -> Path:
    """Writes a table; without options as datasets does."""
    pq.write_table(table, path, **(options or HUGGING_FACE))
    return Path(path)
