"""Public image tokenizers as bundles with a codec alone, and back."""

from collections.abc import Callable
from pathlib import Path

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.interop import taming
from cogview_jax.interop.files import (
    NOTHING_WRITTEN,
    SourceFiles,
    check_bundle_output,
    check_folder_is_free,
    log,
    progress_of,
    reporting,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import atomic_path

#: The name of the file that is given back.
TAMING_FILE = "image_tokenizer.ckpt"
#: So many dropped names are listed.
LISTED = 3


def from_image_tokenizer(
    source: str,
    read: Callable[[Path, int | None], tuple[CodecPart, list[str]]],
    files: SourceFiles,
    out: str,
) -> None:
    """Writes the bundle `out` from an image tokenizer, whose arrays keep their types.

    Args:
        source: the name of its format.
        read: gives the image tokenizer of a file for a grid of codes, and the names it dropped.
        files: the image tokenizer, and perhaps the grid.
        out: the bundle; one that is there is replaced.

    Raises:
        InputError: the file is missing, damaged or of another architecture, other files are given,
            or `out` exists and is no bundle.
    """
    path = check_bundle_output(out)
    if files.image_tokenizer is None:
        raise InputError(f"--image_tokenizer FILE is missing: what --source {source} reads")
    if others := sorted(set(files.given) - {"image_tokenizer", "grid"}):
        raise InputError(
            f"--{others[0]} does not belong to --source {source}: expected --image_tokenizer, and"
            " --grid"
        )
    if files.grid is not None and files.grid < 1:
        raise InputError(f"--grid {files.grid}: expected at least 1")
    part, dropped = read(Path(files.image_tokenizer), files.grid)
    config = part.config
    if files.grid is None:
        log(f"assumed images of {config.grid} x {config.grid} codes (--grid)")
    log(
        f"image tokenizer: {config.codebook} codes of width {config.code_width}, found by"
        f" {config.quantiser.kind}; images of {config.image_size} pixels,"
        f" {config.downsampling} x {config.downsampling} a code"
    )
    if dropped:
        more = f" and {len(dropped) - LISTED} more" * (len(dropped) > LISTED)
        log(f"dropped from {files.image_tokenizer}: {', '.join(dropped[:LISTED])}{more}")
    with at_work(NOTHING_WRITTEN.format(out)), progress_of(part) as progress:
        write_bundle(path, codec=reporting(part, progress))
    log(f"bundle {out}: {', '.join(Bundle(path).parts)}")


def to_taming(bundle: str, out: str) -> None:
    """Writes the image tokenizer of a bundle as OUT/image_tokenizer.ckpt, in the types it has.

    Raises:
        InputError: there is none, the original code cannot hold it, or `out` is not empty.
    """
    opened, path = open_bundle(bundle), check_folder_is_free(out)
    part = opened.stored_codec()
    with at_work(NOTHING_WRITTEN.format(out)), atomic_path(path) as folder:
        folder.mkdir()
        with progress_of(part) as progress:
            taming.write(folder / TAMING_FILE, reporting(part, progress))
    log(f"{out}: {TAMING_FILE}")
