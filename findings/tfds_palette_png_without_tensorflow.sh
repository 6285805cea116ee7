#!/usr/bin/env bash
# tensorflow-datasets 4.9.10 without TensorFlow, array_record 0.8.6, Pillow 13.0.0, Python 3.11.
#
# Guess, before it was run: an image feature of shape (None, None, 3) gives colours, whatever form
# of PNG the encoded picture has.
# Seen: read by `as_data_source` without TensorFlow, a PNG with a palette gives the indices into its
# palette, repeated three times: an almost black picture of the right shape and type. The same
# picture stored without a palette gives its colours. Nothing is said when the set is prepared or
# read. Sets of drawings, icons, screenshots and diagrams hold such files among others, and a model
# learns indices that mean another colour in each file.
# What helps: `decoders={"image": tfds.decode.SkipDecoding()}`, and Pillow's `convert("RGB")`.
#
# Output: "RGB: (2, 2, 3) 0 255 0 then 200 30 90", "palette: (2, 2, 3) 0 0 0 then 1 1 1".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-datasets==4.9.10 array_record==0.8.6 \
  pillow==13.0.0
"$folder/venv/bin/python" - "$folder/data" <<'PYTHON'
import io
import logging
import sys

import tensorflow_datasets as tfds
from PIL import Image

logging.disable(logging.WARNING)
tfds.disable_progress_bar()


def png(palette):
    """Three pixels of one colour, and one green one in front."""
    image = Image.new("RGB", (2, 2), (200, 30, 90))
    image.putpixel((0, 0), (0, 255, 0))
    if palette:
        colours = image.tobytes()
        indices = Image.new("P", image.size, 1)
        indices.putpixel((0, 0), 0)
        indices.putpalette([0, 255, 0, 200, 30, 90])
        assert indices.convert("RGB").tobytes() == colours
        image = indices
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Two pictures that look the same."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = url_infos = None

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        features = tfds.features.FeaturesDict({"image": image, "name": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for name in ("RGB", "palette"):
            yield name, {"image": png(name == "palette"), "name": name}


builder = Pictures(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
found = []
for record in builder.as_data_source("train"):
    image = record["image"]
    first, second = (" ".join(map(str, image[row, row])) for row in (0, 1))
    found.append(f"{record['name'].decode()}: {image.shape} {first} then {second}")
found.sort()
print(*found, sep="\n")
wanted = ["RGB: (2, 2, 3) 0 255 0 then 200 30 90", "palette: (2, 2, 3) 0 0 0 then 1 1 1"]
sys.exit(found != wanted)
PYTHON
