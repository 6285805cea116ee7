"""Writes bundles, whole or not at all."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from cogview_jax.checkpoints.bundle import FILES, Bundle, part_sha256
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.description import FORMAT, NAME
from cogview_jax.checkpoints.tree_writer import save_tree
from cogview_jax.models.quantization import is_quantized
from cogview_jax.runtime.files import (
    check_folder_output,
    replace_tree,
    sync_tree,
    write_json,
)
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.leftovers import remove, temporary_path
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.sealed import sealed
from cogview_jax.tokenizers.text import TextTokenizer

#: Seconds that the processes of a run wait for each other before they write one.
TOGETHER = 1800


def write_bundle(
    path: Path,
    *,
    codec: CodecPart | Bundle | None = None,
    text: TextTokenizer | Bundle | None = None,
    transformer: TransformerPart | None = None,
    step: int | None = None,
    official: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a bundle, whole or not at all; every process of a run calls it.

    A part given as another bundle is copied from there, files and hash, once it is known to have
    that hash. The transformer is recorded as trained with the codec and text given beside it.
    `step` is recorded too: after how many steps the run that writes it did so. `official` says,
    part by part, what its arrays do not tell when it is given back to the official release.
    """
    path, first = path.absolute(), jax.process_index() == 0

    def make() -> str:
        temporary = temporary_path(path)
        temporary.mkdir(parents=True)
        return temporary.name

    check_folder_output(path)
    sync = KVStoreSync(TOGETHER)
    temporary = path.with_name(sync.broadcast("bundle", make))
    # Hosts with folders of their own do not see it: process 0 gets their arrays, and writes all.
    shared = all(sync.all_gather("seen", temporary.exists()))
    try:
        _write_parts(temporary, codec, text, transformer, official, step, shared=shared)
        if first:
            sync_tree(temporary)
            replace_tree(temporary, path)
    finally:
        if first:
            remove(temporary)
    multihost_utils.sync_global_devices("bundle written")


def _write_parts(
    folder: Path,
    codec: CodecPart | Bundle | None,
    text: TextTokenizer | Bundle | None,
    transformer: TransformerPart | None,
    official: Mapping[str, Mapping[str, Any]] | None,
    step: int | None,
    *,
    shared: bool,
) -> None:
    """Writes all files of a bundle into `folder`; arguments as in `write_bundle`.

    shared: whether all processes see the folder.
    """

    def save(name: str, tree: Any) -> None:
        save_tree(folder / FILES[name], tree if shared else jax.tree.map(to_host, tree))

    parts: dict[str, dict] = {}
    if isinstance(codec, CodecPart):
        tree = {"params": codec.params, "codebook": codec.codebook._asdict()}
        save("codec", tree)
        parts["codec"] = codec_entry(codec)
    if transformer is not None:
        save("transformer", transformer.params)
        parts["transformer"] = transformer.entry(transformer.model.positions)
        if is_quantized(transformer.params):
            parts["transformer"]["kernels"] = "int8"
    for name, record in (official or {}).items():
        parts[name]["official"] = dict(record)
    if jax.process_index() == 0:
        if isinstance(text, TextTokenizer):
            text.save(folder / FILES["text"])
            parts["text"] = {"pieces": len(text)}
        for name, source in (("codec", codec), ("text", text)):
            if isinstance(source, Bundle):
                _copy(source.verified(name), folder / FILES[name])
                parts[name] = source.parts[name]
        _describe(folder, parts, step)


def codec_entry(part: CodecPart) -> dict[str, Any]:
    """What is said of an image tokenizer, but for its hash; its arrays are not looked at."""
    entry = {"config": dataclasses.asdict(part.config)}
    return entry if part.weights is None else entry | {"weights": part.weights}


def _describe(path: Path, parts: dict[str, dict], step: int | None) -> None:
    """Writes bundle.json, with the hashes of what lies there."""
    described = {
        name: parts[name] | {"sha256": part_sha256(path / FILES[name])}
        for name in FILES
        if name in parts
    }
    if "transformer" in described:
        described["transformer"]["trained_with"] = {
            name: described[name]["sha256"] for name in ("codec", "text") if name in described
        }
    write_json(path / NAME, sealed({"format": FORMAT, "step": step, "parts": described}))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)
