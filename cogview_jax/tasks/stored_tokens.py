"""The token store that a transformer trains on, or several as a mixture, and whether they fit."""

from dataclasses import dataclass
from pathlib import Path

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.data.sources.mixture import Mixture, Named, Part
from cogview_jax.data.sources.source import Source
from cogview_jax.data.token_records import TokenRecord
from cogview_jax.data.token_store import TokenStore
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import named_by
from cogview_jax.tasks.experiment import TokenData, TransformerExperiment
from cogview_jax.tasks.workdir import Workdir

#: Within a store: the tokenizer-only bundle its tokens were made with.
TOKENIZERS = "tokenizers"
#: The file of an LMDB in its folder; one of the release is a store as it is.
LMDB = "data.mdb"


@dataclass(frozen=True)
class StoreMeta:
    """The metadata that a store has for its readers.

    Attributes:
        grid: rows and columns of the codes of an image; of the larger image where there are two.
            One number where they are the same (`written_grid`).
        codebook: the number of codes.
        pieces: the number of text pieces.
        codec: the hash of the codec.
        text: the hash of the text tokenizer.
        grids: rows and columns of all images of a record; None in stores of earlier versions,
            whose records had one.
        layout: the task that the store was made for.
        views: how many examples in a row are of one image.
    """

    grid: int | tuple[int, int]
    codebook: int
    pieces: int
    codec: str
    text: str
    grids: list[int | tuple[int, int]] | None = None
    layout: str | None = None
    views: int = 1


def written_grid(grid: tuple[int, int]) -> int | tuple[int, int]:
    """Rows and columns as configs and stores have them: one number where they are the same."""
    rows, columns = grid
    return rows if rows == columns else grid


def store_path(data: TokenData, workdir: Workdir) -> Path:
    """Where the token store of a run lies: `data.store`, or tokens/ in the workdir.

    Of a mixture that of the first part, whose tokenizers are those of all.
    """
    return next(iter(store_paths(data, workdir).values()))


def store_paths(data: TokenData, workdir: Workdir) -> dict[str, Path]:
    """Where the token stores of a mixture lie, by the names of the parts; any other under "".

    Of the folder of an LMDB it is the file.
    """
    if data.mixture:
        return {name: Path(data.mixture[name].store).absolute() for name in sorted(data.mixture)}
    path = Path(data.store).absolute() if data.store else workdir.path / "tokens"
    rows = path / LMDB
    return {"": rows if rows.is_file() else path}


def open_mixture(
    experiment: TransformerExperiment, paths: dict[str, Path]
) -> tuple[Source[TokenRecord], dict[str, int]]:
    """The mixture of the token stores in `paths`, and how many examples of each are of one image.

    Raises:
        InputError: a store does not fit the config, or was made with other tokenizers than another.
    """
    parts, views = [], {}
    first: tuple[str, StoreMeta] | None = None
    for name, path in paths.items():
        setting = f"data.mixture.{name}.store"
        if path.is_file():
            raise InputError(
                f"{setting} = {str(path)!r}: expected a token store, that is a folder that prepare"
                " made, and this is a file"
            )
        store, meta = open_store(experiment, path, setting)
        first = first or (setting, meta)
        _check_same_tokenizers(setting, meta, *first)
        part = experiment.data.mixture[name]
        parts.append(Part(name, part.weight, Named(name, store)))
        views[name] = meta.views
    return Mixture(parts), views


def _check_same_tokenizers(name: str, meta: StoreMeta, first: str, others: StoreMeta) -> None:
    for part, setting in (("codec", "data.image_tokenizer"), ("text", "data.text_tokenizer")):
        own, other = getattr(meta, part), getattr(others, part)
        if own != other:
            raise InputError(
                f"{name} was made with {part} {own[:12]}, but {first} with {other[:12]}: a mixture"
                f" needs the same tokenizers; prepare one of them again with the {setting} of the"
                f" other, which is in its folder {TOKENIZERS}"
            )


def store_meta(store: TokenStore, path: Path) -> StoreMeta:
    """What a store says of itself."""
    return build(StoreMeta, store.meta, f"{path}: meta")


def open_store(
    experiment: TransformerExperiment, path: Path, setting: str = "data.store"
) -> tuple[TokenStore, StoreMeta]:
    """The token store at `path`, once it is known to fit the config, and what it says of itself.

    Raises:
        InputError: there is none, or it does not fit; `setting` is the one that names it.
    """
    with named_by(setting, str(path) if setting != "data.store" else experiment.data.store):
        store = TokenStore(path)
    grids, meta = experiment.image_grids, store_meta(store, path)
    has = [meta.grid] if meta.grids is None else meta.grids
    if len(has) != len(grids):
        raise InputError(
            f"the token store {path} holds codes of grids {has}, but a layout of task"
            f" {experiment.layout.task} reads {[written_grid(grid) for grid in grids]}: prepare"
            " another with this config, or choose another data.store"
        )
    whole = experiment.data.image_grid or isinstance(meta.grid, tuple)
    wanted = {
        "grid": (
            "data.image_grid" if whole else "layout.grid",
            written_grid(experiment.image_grid),
        ),
        "codebook": ("vocabulary.codes", experiment.vocabulary.codes),
    }
    for key, (name, value) in wanted.items():
        if (own := getattr(meta, key)) != value:
            flag = ",".join(map(str, own)) if isinstance(own, tuple) else own
            raise InputError(
                f"the token store {path} has {key} {own}, but the config has"
                f" {name} = {value}: pass --config.{name}={flag}"
            )
    if meta.pieces > experiment.vocabulary.text:
        raise InputError(
            f"the token store {path} has {meta.pieces} text pieces, but the"
            f" config has vocabulary.text = {experiment.vocabulary.text}"
        )
    for part in ("codec", "text"):
        made, there = getattr(meta, part), Bundle(path / TOKENIZERS).sha256(part)
        if made != there:
            raise InputError(
                f"the token store {path} was made with {part} {made[:12]}, but the"
                f" {part} in its {TOKENIZERS} is {there[:12]}: prepare it again"
            )
    return store, meta
