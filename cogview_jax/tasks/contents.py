"""What the paths of a config hold, by hash: a run goes on wherever its data lies by then."""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cogview_jax.checkpoints.step_bundle import is_bundle, open_bundle
from cogview_jax.data.remote.addresses import is_address
from cogview_jax.data.sources.mixture import parts_of
from cogview_jax.data.sources.source import Source, listing, opened
from cogview_jax.data.token_shards import MANIFEST, read_manifest
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.files import sha256_file
from cogview_jax.runtime.sealed import seal_of
from cogview_jax.tasks.experiment import CodecExperiment, Experiment, TokenData
from cogview_jax.tasks.store_plan import source_settings
from cogview_jax.tasks.store_tokenizers import given_text
from cogview_jax.tasks.stored_tokens import store_path
from cogview_jax.tasks.workdir import Workdir


def contents(
    experiment: Experiment, workdir: Workdir, source: Source[Any], moved: Collection[str] = ()
) -> dict[str, str]:
    """The hash of what each of `workdir.PATHS` holds, where it can be told.

    Images are told by the names of their records, a token store by its manifest, tokenizers and
    bundles by their parts. No image is read.

    Args:
        experiment: whose settings the paths are.
        workdir: of its run.
        source: the records that it trains on.
        moved: settings whose content is looked for even where that means to open a source.
    """
    found: dict[str, str] = {}
    if isinstance(experiment, CodecExperiment):
        part = "codec"
        found |= {_path_of(part.name): listing(part.source) for part in parts_of(source)}
    else:
        part = "transformer"
        found |= _of_tokens(experiment.data, store_path(experiment.data, workdir), moved)
        for name, mixed in experiment.data.mixture.items():
            raw, _ = read_manifest(Path(mixed.store) / MANIFEST)
            found[f"data.mixture.{name}.store"] = seal_of(raw)
    if (names := experiment.data.filter.exclude) and Path(names).is_file():
        found["data.filter.exclude"] = sha256_file(names)
    if experiment.init_from:
        with contextlib.suppress(InputError, SystemFault):  # once a run has begun it may be gone
            found["init_from"] = open_bundle(experiment.init_from).sha256(part)
    return found


def _path_of(part: str) -> str:
    """The setting that names the images of a source, or of a part of a mixture."""
    return f"data.source.parts.{part}.source.path" if part else "data.source.path"


def _of_tokens(data: TokenData, store: Path, moved: Collection[str]) -> dict[str, str]:
    """Of the data of a transformer; what a config does not say, or is gone, is as in the store."""
    found = {}
    if not store.is_file():
        raw, manifest = read_manifest(store / MANIFEST)
        found["data.store"] = seal_of(raw)
        found["data.image_tokenizer"] = manifest.meta["codec"]
        found["data.text_tokenizer"] = manifest.meta["text"]
        if manifest.plan.get("source") == source_settings(data.source):
            found["data.source.path"] = manifest.plan.get("listing", "")
    # Of an address only what is another one by now is asked for.
    asked = "data.image_tokenizer" in moved or not is_address(data.image_tokenizer)
    if data.image_tokenizer and asked and is_bundle(data.image_tokenizer):
        found["data.image_tokenizer"] = open_bundle(data.image_tokenizer).sha256("codec")
    if data.text_tokenizer and Path(data.text_tokenizer).exists():
        found["data.text_tokenizer"] = given_text(data).sha256
    if "data.source.path" in moved:
        found["data.source.path"] = listing(opened(data.source, run=data.from_))
    return {name: digest for name, digest in found.items() if digest}
