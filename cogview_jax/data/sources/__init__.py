"""Sources of records. Importing this package makes the kinds of `data.source` known to configs.

A new kind is a file here and its name in the line below.
"""

from cogview_jax.data.sources import (  # noqa: F401
    arrow,
    coco,
    emoji,
    folder,
    lmdb,
    mixture_config,
    parquet,
    shapes,
    tfds,
    webdataset,
)
