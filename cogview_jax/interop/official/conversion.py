"""Converts the files of the official release to a bundle, and a bundle to such files."""

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.interop.files import (
    NOTHING_WRITTEN,
    SourceFiles,
    check_bundle_output,
    check_folder_is_free,
    log,
    progress_of,
    reporting,
)
from cogview_jax.interop.official import codec as official_codec
from cogview_jax.interop.official import transformer as official_transformer
from cogview_jax.interop.official.codec import OfficialCodec
from cogview_jax.interop.official.sizes import infer_layout, infer_vocabulary
from cogview_jax.interop.official.transformer import OfficialTransformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import atomic_path
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.tokenizers.text import TextTokenizer

#: The names in the folder that `to_official` writes.
TRANSFORMER, IMAGE_TOKENIZER = "transformer", "image_tokenizer.pt"
TEXT_TOKENIZER = "text_tokenizer.model"
#: Assumed if neither a file nor a flag tells: the grid of the released image tokenizer, and the
#: pretraining task.
GRID, TASK = 32, "text_to_image"


#: These settings describe a transformer.
OF_A_TRANSFORMER = ("num_heads", "codes", "pieces", "layout_task")


def from_official(files: SourceFiles, out: str) -> None:
    """Writes the bundle `out` from one, two or three official parts, without changing their types.

    Standard error says what is assumed about a part that is not given, and which arrays are
    dropped. A bundle at `out` is replaced.

    Raises:
        InputError: a file cannot be read or holds another model, the parts do not fit each other,
            or `out` exists and is no bundle.
    """
    path = check_bundle_output(out)
    _check(files)
    text = TextTokenizer.load(files.text_tokenizer) if files.text_tokenizer else None
    codec = OfficialCodec.open(files.image_tokenizer) if files.image_tokenizer else None
    records, grid, transformer = {}, files.grid, None
    if files.transformer:
        opened = OfficialTransformer.open(files.transformer)
        transformer = _transformer_part(files, opened, codec, text)
        grid = transformer.layout.grid
        records["transformer"] = {"iteration": opened.iteration}
    if codec is not None:
        records["codec"] = {"prefix": codec.prefix}
    codec_part = None if codec is None else _codec_part(codec, grid)
    with at_work(NOTHING_WRITTEN.format(out)), progress_of(codec_part, transformer) as progress:
        write_bundle(
            path,
            codec=None if codec_part is None else reporting(codec_part, progress),
            text=text,
            transformer=None if transformer is None else reporting(transformer, progress),
            official=records,
        )
    log(f"bundle {out}: {', '.join(Bundle(path).parts)}")


def to_official(bundle: str, out: str) -> None:
    """Writes the parts of a bundle as official files into the folder `out`, whole or not at all.

    The transformer becomes OUT/transformer/ with its tracker file, the image tokenizer
    OUT/image_tokenizer.pt, and the text tokenizer OUT/text_tokenizer.model. Types do not change.
    Parts that came from official files get the names and the iteration that they had there.
    Standard error says where the official code computes something else than the trained model.

    Raises:
        InputError: the official code cannot hold an architecture, or `out` is not empty.
    """
    opened, path = open_bundle(bundle), check_folder_is_free(out)
    differences: dict[str, list[str]] = {}
    with at_work(NOTHING_WRITTEN.format(out)), atomic_path(path) as folder:
        folder.mkdir()
        if "codec" in opened.parts:
            codec, prefix = opened.stored_codec(), opened.official("codec").get("prefix", "")
            with progress_of(codec) as progress:
                official_codec.write_codec(
                    folder / IMAGE_TOKENIZER, reporting(codec, progress), prefix
                )
            differences["codec"] = official_codec.differences(codec.config)
        if "transformer" in opened.parts:
            part = opened.stored_transformer()
            iteration = opened.official("transformer").get("iteration", str(opened.step or 0))
            with progress_of(part) as progress:
                official_transformer.write_transformer(
                    folder / TRANSFORMER, reporting(part, progress), iteration
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
            log(f"note: the official code does not compute the {name} as trained: {difference}")
    log(f"{out}: {', '.join(written)}")


def _check(files: SourceFiles) -> None:
    """Checks the settings before a file is read."""
    if not (files.transformer or files.image_tokenizer or files.text_tokenizer):
        raise InputError(
            "nothing to convert: give --transformer, --image_tokenizer or --text_tokenizer"
        )
    if files.transformer and files.num_heads is None:
        raise InputError(
            "--num_heads N is missing: the weights of a transformer do not tell it (the released"
            " ones have 40)"
        )
    for name in OF_A_TRANSFORMER:
        if not files.transformer and getattr(files, name) is not None:
            raise InputError(f"--{name} belongs to --transformer, which is not given")


def _transformer_part(
    files: SourceFiles,
    opened: OfficialTransformer,
    codec: OfficialCodec | None,
    text: TextTokenizer | None,
) -> TransformerPart:
    """Returns the transformer, with the vocabulary and the layout that the three parts tell."""
    if codec is not None and files.codes not in (None, codec.codes):
        raise InputError(f"--codes {files.codes}, but {codec.file} has a codebook of {codec.codes}")
    if text is not None and files.pieces not in (None, len(text)):
        raise InputError(f"--pieces {files.pieces}, but {files.text_tokenizer} has {len(text)}")
    codes = files.codes if codec is None else codec.codes
    pieces = files.pieces if text is None else len(text)
    vocabulary = infer_vocabulary(opened.vocabulary_size, codes, pieces)
    task = TASK if files.layout_task is None else files.layout_task
    layout = infer_layout(opened.positions, files.grid, task)
    make_layout(layout, vocabulary)  # It refuses an unknown task.
    assert files.num_heads is not None, "`_check` has refused that"
    part = opened.part(files.num_heads, vocabulary, layout)
    config = part.config
    log(
        f"transformer: {config.layers} layers of width {config.width}, {config.heads} heads,"
        f" {opened.positions} positions"
    )
    if codes is None:
        log(f"no image tokenizer: assumed {vocabulary.codes} codes (--codes)")
    if pieces is None:
        log(f"no text tokenizer: assumed {vocabulary.text} pieces (--pieces)")
    if files.grid is None:
        log(
            f"assumed {layout.grid} x {layout.grid} codes and {layout.text_length} of text (--grid)"
        )
    if opened.dropped:
        log(f"dropped from {opened.file}: {', '.join(opened.dropped)}")
    return part


def _codec_part(codec: OfficialCodec, grid: int | None) -> CodecPart:
    if grid is None:
        log(f"no transformer: assumed images of {GRID} x {GRID} codes (--grid)")
    part = codec.part(GRID if grid is None else grid)
    config = part.config
    log(
        f"image tokenizer: {config.codebook} codes of width {config.code_width}, images of"
        f" {config.image_size} pixels"
    )
    return part
