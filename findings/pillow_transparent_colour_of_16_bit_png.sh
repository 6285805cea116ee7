#!/usr/bin/env bash
# Pillow 13.0.0, numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: `convert("RGBA")` makes the pixels transparent that a PNG says are, at
# any depth. Seen: of an RGB PNG of 16 bits whose one colour is declared transparent, all pixels
# come out opaque: the declared colour keeps its 16 bits, while the pixels it is compared with have
# been cut to 8. The same picture with 8 bits comes out transparent. Data sets of cut-out objects in
# 16 bits get their hidden background, often black, without a warning. What helps: compare the
# samples before they are cut.
#
# Output: "8 bits: alpha 0", "16 bits: alpha 255".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys
import zlib

import numpy as np
from PIL import Image


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def picture(bits):
    """A PNG of 2 x 2 equal pixels, whose colour is the transparent one."""
    samples = (255, 128, 0) if bits == 8 else (65535, 32768, 0)
    pixel = struct.pack(">3B" if bits == 8 else ">3H", *samples)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, bits, 2, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">3H", *samples)),
            chunk(b"IDAT", zlib.compress((b"\0" + 2 * pixel) * 2)),
            chunk(b"IEND", b""),
        )
    )


found = []
for bits in (8, 16):
    with Image.open(io.BytesIO(picture(bits))) as image:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    found.append(f"{bits} bits: alpha {' '.join(map(str, np.unique(alpha)))}")
print(*found, sep="\n")
sys.exit(found != ["8 bits: alpha 0", "16 bits: alpha 255"])
PYTHON
