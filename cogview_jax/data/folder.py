"""A folder of images with captions, as a source."""

import json
from pathlib import Path

from cogview_jax.data.images import decode_image
from cogview_jax.data.records import BadRecord, Record, clean_captions
from cogview_jax.runtime.errors import InputError

LISTING = "captions.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class FolderSource:
    """The images of a folder, in one of two forms.

    With a `captions.jsonl` directly in the folder, its lines are the records, in their order:
    `{"file": "a/1.png", "caption": "a cat"}`, or `"captions": [...]` for several. Images it does
    not list are no part of the data. Without one, every image in the folder and below it is a
    record, in the order of the paths, and `1.txt` beside `1.png` holds a caption a line.

    Listing reads no image and no caption, so it is quick and cannot fail on a bad record.
    """

    def __init__(self, path: str | Path, *, require_captions: bool = True):
        """Lists the folder.

        Args:
            path: the folder.
            require_captions: without, images that have no caption are records too (an image
                tokenizer trains on those).

        Raises:
            InputError: no such folder, or nothing to read in it.
        """
        self._root, self._required = Path(path), require_captions
        if not self._root.is_dir():
            raise InputError(f"path={str(path)!r}: expected a folder of images, there is none")
        listing = self._root / LISTING
        self._lines: list[tuple[int, bytes]] = []
        self._files: list[str] = []
        if listing.is_file():
            lines = listing.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
            self._lines = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        else:
            found = (p.relative_to(self._root) for p in self._root.rglob("*"))
            self._files = sorted(p.as_posix() for p in found if _is_image(p))
        if not self._lines and not self._files:
            what = "it has no line" if listing.is_file() else "there is none"
            raise InputError(
                f"path={str(path)!r}: expected {LISTING} with a line an image ({what}),"
                f" or images ({', '.join(SUFFIXES)}) in it or below"
            )

    def __len__(self) -> int:
        """The number of records, good and bad."""
        return len(self._lines or self._files)

    def key(self, i: int) -> str:
        """The image's path within the folder; for a line that cannot be read, the line."""
        if self._files:
            return self._files[i]
        try:
            return _parse(*self._lines[i])[0]
        except BadRecord as error:
            return error.key

    def __getitem__(self, i: int) -> Record:
        """Reads record `i`.

        Raises:
            BadRecord: a malformed line; no caption; a missing or unreadable image.
        """
        key, texts = _parse(*self._lines[i]) if self._lines else self._beside(self._files[i])
        captions = clean_captions(texts, key, required=self._required)
        return Record(key, decode_image(_read(self._root / key, key, "image"), key), captions)

    def _beside(self, file: str) -> tuple[str, list[str]]:
        """The file and the lines of the text file beside it."""
        path = (self._root / file).with_suffix(".txt")
        if not self._required and not path.exists():
            return file, []
        try:
            return file, _read(path, file, "caption").decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise BadRecord(file, f"caption file {path.name} is not UTF-8") from None


def _is_image(path: Path) -> bool:
    # A leading dot marks what is no picture: the "._1.png" that macOS leaves beside "1.png".
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _read(path: Path, key: str, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else error.strerror
        raise BadRecord(key, f"{what} file {path.name}: {reason}") from None


def _parse(number: int, line: bytes) -> tuple[str, list[str]]:
    """The file and captions of a line of the listing."""
    where = f"{LISTING}:{number}"
    try:
        entry = json.loads(line)
    except ValueError as error:  # not JSON, or not UTF-8
        raise BadRecord(where, f"malformed line: {error}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        raise BadRecord(where, 'expected an object with "file", the path of an image')
    texts = entry.get("captions", [entry.get("caption", "")])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRecord(entry["file"], '"caption" must be a text, "captions" a list of texts')
    return entry["file"], texts
