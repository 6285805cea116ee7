"""Converts the files of the official release to a bundle, and a bundle to such files."""

import dataclasses
import sys
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from cogview_jax.checkpoints.bundle import Bundle, CodecPart, TransformerPart, write_bundle
from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.interop.official import codec as official_codec
from cogview_jax.interop.official import transformer as official_transformer
from cogview_jax.interop.official.codec import OfficialCodec
from cogview_jax.interop.official.sizes import infer_layout, infer_vocabulary
from cogview_jax.interop.official.transformer import OfficialTransformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import atomic_path, check_folder_output
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.paths import local_path
from cogview_jax.runtime.progress import Progress
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.tokenizers.text import TextTokenizer

Part = TypeVar("Part", CodecPart, TransformerPart)

#: The names in the folder that `to_official` writes.
TRANSFORMER, IMAGE_TOKENIZER = "transformer", "image_tokenizer.pt"
TEXT_TOKENIZER = "text_tokenizer.model"
#: Said if the machine fails while `{}` is written.
NOTHING_WRITTEN = "{} is as it was, and the same command starts anew"
#: Assumed if neither a file nor a flag tells: the grid of the released image tokenizer, and the
#: pretraining task.
GRID, TASK = 32, "text_to_image"


@dataclasses.dataclass(frozen=True)
class Official:
    """Official files, and settings that the files do not hold. None means that one is not given.

    Attributes:
        transformer: the folder with the tracker file.
        image_tokenizer: the torch file.
        text_tokenizer: the SentencePiece model.
        num_heads: the number of attention heads of the transformer.
        codes: the number of image codes in its vocabulary, needed if there is no image tokenizer.
        pieces: the number of text pieces in its vocabulary, needed if there is no text tokenizer.
        grid: rows and columns of the codes of an image.
        layout_task: the task whose sequences the transformer was trained on.
    """

    transformer: str | None = None
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    num_heads: int | None = None
    codes: int | None = None
    pieces: int | None = None
    grid: int | None = None
    layout_task: str | None = None


#: These settings describe a transformer.
OF_A_TRANSFORMER = ("num_heads", "codes", "pieces", "layout_task")


def convert(
    source: str | None, target: str | None, official: Official, bundle: str | None, out: str
) -> None:
    """Converts in the given direction; see `from_official` and `to_official`.

    Raises:
        InputError: no direction or both are given, or a setting belongs to the other direction.
    """
    if (source is None) == (target is None):
        raise InputError("expected either --source official or --target official")
    if source is not None and bundle is not None:
        raise InputError("--bundle belongs to --target official: a new bundle is --out")
    check_folder_output(out, "--out")
    local_path(out, "--out")
    path = Path(out).absolute()
    lock = path.with_name(f".{path.name}.convert.lock")
    with locked(lock, f"the output {out}", "choose another --out"):
        remove_leftovers(path.parent)
        if source is not None:
            from_official(official, out)
        else:
            _give_back(official, bundle, out)


def _give_back(official: Official, bundle: str | None, out: str) -> None:
    given = [name for name, value in dataclasses.asdict(official).items() if value is not None]
    if given:
        raise InputError(f"--{given[0]} belongs to --source official, not to --target official")
    if bundle is None:
        raise InputError("--bundle TEXT is missing: the bundle that --target official gives back")
    to_official(bundle, out)


def from_official(official: Official, out: str) -> None:
    """Writes the bundle `out` from one, two or three official parts, without changing their types.

    Standard error says what is assumed about a part that is not given, and which arrays are
    dropped. A bundle at `out` is replaced.

    Raises:
        InputError: a file cannot be read or holds another model, the parts do not fit each other,
            or `out` exists and is no bundle.
    """
    path = Path(out)
    if not _free(path) and not (path / "bundle.json").is_file():
        raise InputError(f"--out {out} exists and is no bundle: choose another, or delete it")
    _check(official)
    text = TextTokenizer.load(official.text_tokenizer) if official.text_tokenizer else None
    codec = OfficialCodec.open(official.image_tokenizer) if official.image_tokenizer else None
    records, grid, transformer = {}, official.grid, None
    if official.transformer:
        opened = OfficialTransformer.open(official.transformer)
        transformer = _transformer_part(official, opened, codec, text)
        grid = transformer.layout.grid
        records["transformer"] = {"iteration": opened.iteration}
    if codec is not None:
        records["codec"] = {"prefix": codec.prefix}
    codec_part = None if codec is None else _codec_part(codec, grid)
    with at_work(NOTHING_WRITTEN.format(out)), _progress(codec_part, transformer) as progress:
        write_bundle(
            path,
            codec=None if codec_part is None else _reporting(codec_part, progress),
            text=text,
            transformer=None if transformer is None else _reporting(transformer, progress),
            official=records,
        )
    _log(f"bundle {out}: {', '.join(Bundle(path).parts)}")


def to_official(bundle: str, out: str) -> None:
    """Writes the parts of a bundle as official files into the folder `out`, whole or not at all.

    The transformer becomes OUT/transformer/ with its tracker file, the image tokenizer
    OUT/image_tokenizer.pt, and the text tokenizer OUT/text_tokenizer.model. Types do not change.
    Parts that came from official files get the names and the iteration that they had there.
    Standard error says where the official code computes something else than the trained model.

    Raises:
        InputError: the official code cannot hold an architecture, or `out` is not empty.
    """
    opened, path = Bundle(bundle), Path(out)
    if not _free(path):
        raise InputError(f"--out {out} exists and is not empty: choose another, or delete it")
    differences: dict[str, list[str]] = {}
    with at_work(NOTHING_WRITTEN.format(out)), atomic_path(path) as folder:
        folder.mkdir()
        if "codec" in opened.parts:
            codec, prefix = opened.stored_codec(), opened.official("codec").get("prefix", "")
            with _progress(codec) as progress:
                official_codec.write_codec(
                    folder / IMAGE_TOKENIZER, _reporting(codec, progress), prefix
                )
            differences["codec"] = official_codec.differences(codec.config)
        if "transformer" in opened.parts:
            part = opened.stored_transformer()
            iteration = opened.official("transformer").get("iteration", str(opened.step or 0))
            with _progress(part) as progress:
                official_transformer.write_transformer(
                    folder / TRANSFORMER, _reporting(part, progress), iteration
                )
            differences["transformer"] = official_transformer.differences(part.config)
        if "text" in opened.parts:
            text = opened.text()
            text.save(folder / TEXT_TOKENIZER)
            if "transformer" in opened.parts and len(text) != part.vocabulary.text:
                differences["transformer"].append(
                    f"its command tokens follow the {len(text)} pieces of the text tokenizer, but"
                    f" this learned them after {part.vocabulary.text}"
                )
        written = sorted(entry.name for entry in folder.iterdir())
    for name, list_ in differences.items():
        for difference in list_:
            _log(f"note: the official code does not compute the {name} as trained: {difference}")
    _log(f"{out}: {', '.join(written)}")


def _check(official: Official) -> None:
    """Checks the settings before a file is read."""
    if not (official.transformer or official.image_tokenizer or official.text_tokenizer):
        raise InputError(
            "nothing to convert: give --transformer, --image_tokenizer or --text_tokenizer"
        )
    if official.transformer and official.num_heads is None:
        raise InputError(
            "--num_heads N is missing: the weights of a transformer do not tell it (the released"
            " ones have 40)"
        )
    for name in OF_A_TRANSFORMER:
        if not official.transformer and getattr(official, name) is not None:
            raise InputError(f"--{name} belongs to --transformer, which is not given")


def _transformer_part(
    official: Official,
    opened: OfficialTransformer,
    codec: OfficialCodec | None,
    text: TextTokenizer | None,
) -> TransformerPart:
    """Returns the transformer, with the vocabulary and the layout that the three parts tell."""
    if codec is not None and official.codes not in (None, codec.codes):
        raise InputError(
            f"--codes {official.codes}, but {codec.file} has a codebook of {codec.codes}"
        )
    if text is not None and official.pieces not in (None, len(text)):
        raise InputError(
            f"--pieces {official.pieces}, but {official.text_tokenizer} has {len(text)}"
        )
    codes = official.codes if codec is None else codec.codes
    pieces = official.pieces if text is None else len(text)
    vocabulary = infer_vocabulary(opened.vocabulary_size, codes, pieces)
    task = TASK if official.layout_task is None else official.layout_task
    layout = infer_layout(opened.positions, official.grid, task)
    make_layout(layout, vocabulary)  # It refuses an unknown task.
    assert official.num_heads is not None, "`_check` has refused that"
    part = opened.part(official.num_heads, vocabulary, layout)
    config = part.config
    _log(
        f"transformer: {config.layers} layers of width {config.width}, {config.heads} heads,"
        f" {opened.positions} positions"
    )
    if codes is None:
        _log(f"no image tokenizer: assumed {vocabulary.codes} codes (--codes)")
    if pieces is None:
        _log(f"no text tokenizer: assumed {vocabulary.text} pieces (--pieces)")
    if official.grid is None:
        _log(
            f"assumed {layout.grid} x {layout.grid} codes and {layout.text_length} of text (--grid)"
        )
    if opened.dropped:
        _log(f"dropped from {opened.file}: {', '.join(opened.dropped)}")
    return part


def _codec_part(codec: OfficialCodec, grid: int | None) -> CodecPart:
    if grid is None:
        _log(f"no transformer: assumed images of {GRID} x {GRID} codes (--grid)")
    part = codec.part(GRID if grid is None else grid)
    config = part.config
    _log(
        f"image tokenizer: {config.codebook} codes of width {config.code_width}, images of"
        f" {config.image_size} pixels"
    )
    return part


def _progress(*parts: CodecPart | TransformerPart | None) -> Progress:
    """Returns a progress bar for the arrays of some parts."""
    count = sum(len(jax.tree.leaves(part.params)) for part in parts if part is not None)
    return Progress(count, "convert", unit="array")


def _reporting(part: Part, progress: Progress) -> Part:
    """Returns the part, each of whose arrays reports to `progress` when it is made."""

    def reporting(array: Deferred) -> Deferred:
        def make() -> np.ndarray:
            made = array.make()
            progress.update()
            return made

        return dataclasses.replace(array, make=make)

    return dataclasses.replace(part, params=jax.tree.map(reporting, part.params))


def _free(path: Path) -> bool:
    """Returns whether nothing is lost if `path` is written."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _log(line: str) -> None:
    print(line, file=sys.stderr)
