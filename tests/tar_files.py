"""Small tars of captioned images for tests."""

import io
import json
import os
import tarfile
from pathlib import Path

from PIL import Image


def png(value: int) -> bytes:
    """An image of 6 x 8 pixels of one colour, (value, 1, 2)."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 8), (value, 1, 2)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: str | os.PathLike, entries: dict | list) -> Path:
    """Writes a tar of entries, from name to content: bytes, a text, or an object as JSON."""
    pairs = entries.items() if isinstance(entries, dict) else entries
    with tarfile.open(path, "w") as tar:
        for name, content in pairs:
            if not isinstance(content, (bytes, str)):
                content = json.dumps(content)
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return Path(path)


def write_samples(path: str | os.PathLike, numbers: range) -> Path:
    """Writes a tar as img2dataset does: 0007.png of value 7, with its .txt and .json."""
    entries = {}
    for i in numbers:
        entries[f"{i:04}.png"] = png(i)
        entries[f"{i:04}.json"] = {"caption": f"number {i}", "alt": [f"no. {i}", "an image"]}
        entries[f"{i:04}.txt"] = f"number {i}"
    return write_tar(path, entries)
