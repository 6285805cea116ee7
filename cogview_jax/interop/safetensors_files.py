"""Bundles as safetensors, one file a part, and back.

A file holds the arrays of a part under their dotted names, in the types they have, and in its
metadata what bundle.json says of the part. The text tokenizer stays a SentencePiece model.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from cogview_jax.checkpoints.bundle import Bundle, codec_shapes, transformer_shapes
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.description import CodecEntry, TransformerEntry
from cogview_jax.checkpoints.safetensors_metadata import DESCRIPTION, read_metadata
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.interop.files import (
    NOTHING_WRITTEN,
    SourceFiles,
    check_bundle_output,
    check_folder_is_free,
    log,
    progress_of,
    reporting,
)
from cogview_jax.interop.rules import flat
from cogview_jax.interop.safetensors_arrays import TYPES, write_arrays
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import atomic_path
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.text import TextTokenizer

TRANSFORMER, IMAGE_TOKENIZER = "transformer.safetensors", "image_tokenizer.safetensors"
TEXT_TOKENIZER = "text_tokenizer.model"


def to_safetensors(bundle: str, out: str) -> None:
    """Writes the parts of a bundle into the folder `out`; whole or not at all.

    Raises:
        InputError: `bundle` is none, or `out` is not empty.
    """
    opened, path = open_bundle(bundle), check_folder_is_free(out)
    with at_work(NOTHING_WRITTEN.format(out)), atomic_path(path) as folder:
        folder.mkdir()
        write_parts(opened, folder)
        written = sorted(entry.name for entry in folder.iterdir())
    log(f"{out}: {', '.join(written)}")


def write_parts(opened: Bundle, folder: Path) -> None:
    """Writes a file for each part of a bundle, under our names."""
    if "codec" in opened.parts:
        codec = opened.stored_codec()
        with progress_of(codec) as progress:
            made = reporting(codec, progress)
            tree = {"params": made.params, "codebook": made.codebook._asdict()}
            _write(folder / IMAGE_TOKENIZER, tree, {"config": dataclasses.asdict(codec.config)})
    if "transformer" in opened.parts:
        part = opened.stored_transformer()
        with progress_of(part) as progress:
            params = reporting(part, progress).params
            about = part.entry(part.model.positions)
            _write(folder / TRANSFORMER, params, about)
    if "text" in opened.parts:
        opened.text().save(folder / TEXT_TOKENIZER)


def from_safetensors(files: SourceFiles, out: str) -> None:
    """Writes the bundle `out` from files that `to_safetensors` wrote.

    Raises:
        InputError: a file is none, does not describe its part, or its arrays are others than it
            describes; a setting is given that the files hold; or `out` exists and is no bundle.
    """
    path = check_bundle_output(out)
    parts = {"transformer", "image_tokenizer", "text_tokenizer"}
    if others := sorted(set(files.given) - parts):
        raise InputError(f"--{others[0]} does not belong to --source safetensors: its files say it")
    if not files.given:
        raise InputError(
            "nothing to convert: give --transformer, --image_tokenizer or --text_tokenizer"
        )
    text = TextTokenizer.load(files.text_tokenizer) if files.text_tokenizer else None
    codec = _codec(Path(files.image_tokenizer)) if files.image_tokenizer else None
    transformer = _transformer(Path(files.transformer)) if files.transformer else None
    with at_work(NOTHING_WRITTEN.format(out)), progress_of(codec, transformer) as progress:
        write_bundle(
            path,
            codec=None if codec is None else reporting(codec, progress),
            text=text,
            transformer=None if transformer is None else reporting(transformer, progress),
        )
    log(f"bundle {out}: {', '.join(Bundle(path).parts)}")


def _codec(file: Path) -> CodecPart:
    about = read_metadata(file)
    config = build(CodecEntry, about | {"sha256": ""}, str(file)).config
    with safetensors.safe_open(file, framework="numpy") as opened:
        arrays = len(opened.keys())
    if config.depth > arrays:
        raise InputError(f"{file}: {arrays} arrays are no codec of {config.depth} or more")
    tree = _tree(file, unbox(codec_shapes(config)))
    return CodecPart(config, tree["params"], config.quantiser.State(**tree["codebook"]))


def _transformer(file: Path) -> TransformerPart:
    entry = build(TransformerEntry, read_metadata(file) | {"sha256": ""}, str(file))
    positions, vocabulary = entry.learned_positions, entry.vocabulary
    model = Transformer(entry.config, vocabulary.size, positions, vocabulary=vocabulary)
    params = _tree(file, unbox(transformer_shapes(model)))
    return TransformerPart.described(entry, params)


def _write(file: Path, tree: Any, description: Mapping[str, Any]) -> None:
    """Writes the arrays of a tree of `Deferred`s, one after another."""
    leaves = flat(tree)
    arrays = ((name, leaf.make()) for name, leaf in leaves.items())
    write_arrays(file, leaves, arrays, {DESCRIPTION: json.dumps(description, sort_keys=True)})


def _tree(file: Path, shapes: Any) -> Any:
    """The arrays of a file as a tree like `shapes`, each a `Deferred` in its own type.

    Raises:
        InputError: an array is missing, unknown, of another shape or of no known type.
    """
    with safetensors.safe_open(file, framework="numpy") as opened:
        there = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        sizes = {name: tuple(piece.get_shape()) for name, piece in there.items()}
        types = {name: TYPES.get(piece.get_dtype()) for name, piece in there.items()}
    wanted = flat(shapes)
    for problem, names in (("lacks", set(wanted) - set(there)), ("has", set(there) - set(wanted))):
        if names:
            raise InputError(f"{file} {problem} {min(names)}, unlike what it says it holds")
    tree: dict[str, Any] = {}
    for name, leaf in wanted.items():
        dtype = types[name]
        if sizes[name] != tuple(leaf.shape) or dtype is None:
            raise InputError(
                f"{file}: {name} has shape {list(sizes[name])}, expected {list(leaf.shape)} of one"
                f" of {', '.join(TYPES)}"
            )
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = Deferred(sizes[name], dtype, _reader(file, name))
    return tree


def _reader(file: Path, name: str) -> Any:
    def make() -> np.ndarray:
        with safetensors.safe_open(file, framework="numpy") as opened:
            return opened.get_tensor(name)

    return make
