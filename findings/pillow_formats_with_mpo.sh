#!/usr/bin/env bash
# Pillow 13.0.0, Python 3.11.
#
# Guess, before it was run: `Image.open(file, formats=...)` tries the formats that are named and no
# other, in any order. Seen: with "MPO" among them, a whole PNG ends with KeyError: 'MPO' wherever
# MPO stands before PNG, because MPO has no opener of its own (such files come in under JPEG, and
# are called MPO afterwards). Who restricts a service to a list of formats that `image.format` gave
# (MPO is what many phones write) turns away every other image with an error that is no
# UnidentifiedImageError. What helps: leave MPO out; JPEG lets its files in.
#
# Output: "PNG among PNG, MPO: PNG", "PNG among MPO, PNG: KeyError", "MPO among JPEG: MPO".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

from PIL import Image

one, two = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
png, mpo = io.BytesIO(), io.BytesIO()
one.save(png, "PNG")
one.save(mpo, "MPO", save_all=True, append_images=[two])


def opened(file, formats):
    try:
        with Image.open(io.BytesIO(file.getvalue()), formats=formats) as image:
            return image.format
    except Exception as error:
        return type(error).__name__


found = [
    f"PNG among PNG, MPO: {opened(png, ['PNG', 'MPO'])}",
    f"PNG among MPO, PNG: {opened(png, ['MPO', 'PNG'])}",
    f"MPO among JPEG: {opened(mpo, ['JPEG'])}",
]
print(*found, sep="\n")
wanted = ["PNG among PNG, MPO: PNG", "PNG among MPO, PNG: KeyError", "MPO among JPEG: MPO"]
sys.exit(found != wanted)
PYTHON
