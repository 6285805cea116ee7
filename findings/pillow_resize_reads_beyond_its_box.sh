#!/usr/bin/env bash
# Pillow 13.0.0, numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: `image.resize(size, filter, box=box)` gives the pixels of
# `image.crop(box).resize(size, filter)`, without the copy; the manual calls `box` the region that is
# scaled.
# Seen: near the edges of the box the filter reads pixels outside it. A black box in a white image,
# made half as large, has a rim of up to 60 (bilinear), 33 (bicubic) and 27 (Lanczos) of 255 in
# place of 0; with BOX and NEAREST nothing differs. So two pipelines that differ in
# this alone, random crops in training and crops in evaluation, or tiles of a large image, do not
# agree to the pixel, and a tile holds some of its neighbours.
# What helps: crop first where the crop is to be an image of its own.
#
# Output: "NEAREST: rim 0, cropped first: 0", then 0 for BOX, 60, 33 and 27, and 0 cropped first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from PIL import Image

BOX = (64, 64, 192, 192)
pixels = np.full((256, 256), 255, np.uint8)
pixels[64:192, 64:192] = 0
image = Image.fromarray(pixels)


def brightest(filter):
    """The largest value of the black box at half its size, read in place and cropped first."""
    in_place = np.asarray(image.resize((64, 64), filter, box=BOX))
    cropped = np.asarray(image.crop(BOX).resize((64, 64), filter))
    return int(in_place.max()), int(cropped.max())


found = []
for name in ("NEAREST", "BOX", "BILINEAR", "BICUBIC", "LANCZOS"):
    rim, cropped = brightest(getattr(Image.Resampling, name))
    found.append(f"{name}: rim {rim}, cropped first: {cropped}")
print(*found, sep="\n")
wanted = [
    "NEAREST: rim 0, cropped first: 0",
    "BOX: rim 0, cropped first: 0",
    "BILINEAR: rim 60, cropped first: 0",
    "BICUBIC: rim 33, cropped first: 0",
    "LANCZOS: rim 27, cropped first: 0",
]
sys.exit(found != wanted)
PYTHON
