"""What the content of a token store depends on, for its plan: with another one it is not filled."""

import json
import sys
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import jax

from cogview_jax.data.records import Record
from cogview_jax.data.sources.source import Source, SourceConfig, listing
from cogview_jax.data.token_shards import MANIFEST, PLAN
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sealed import read_sealed
from cogview_jax.tasks.experiment import TokenData
from cogview_jax.tasks.store_tokenizers import given_text


def encoding_plan(data: TokenData, path: Path) -> dict[str, str]:
    """What the codes of a store depend on besides images and codec, for its plan.

    Devices of another kind round differently and choose another code for some vectors, which does
    not matter for a finished store. A store that was begun before plans had these entries is
    finished without them.

    Raises:
        InputError: the store at `path` was begun in another precision, or on another kind of
            device.
    """
    device = jax.devices()[0]
    here = {
        "precision": data.encode_precision,
        "platform": device.platform,
        "device_kind": device.device_kind,
    }
    if not (path / PLAN).exists():
        return here
    begun = read_sealed(path / PLAN)
    there = {name: begun[name] for name in here if name in begun}
    finished = (path / MANIFEST).exists()
    if not there:
        if not finished:
            print(
                f"{path} does not say how it was begun; the rest of it is encoded in"
                f" {data.encode_precision} on {device.device_kind}",
                file=sys.stderr,
            )
        return {}
    if there["precision"] != data.encode_precision:
        raise InputError(
            f"{path} was begun with codes found in {there['precision']}, but the config has"
            f" data.encode_precision = {data.encode_precision}: pass"
            f" --config.data.encode_precision={there['precision']}, or choose another data.store"
        )
    if not finished and there != here:
        was, now = (f"{x['platform']} ({x['device_kind']})" for x in (there, here))
        raise InputError(
            f"{path} was begun on {was}, and this is {now}, which finds other codes here and there:"
            " finish it there, choose another data.store, or delete it to begin anew"
        )
    return there


def source_settings(source: SourceConfig) -> dict:
    """The settings of a source, as JSON has them."""
    return json.loads(json.dumps(asdict(source)))


def source_plan(source: SourceConfig, records: Source[Record], path: Path) -> dict:
    """The settings of the source that the store at `path` depends on, and its listing.

    If a store was begun by an earlier version, settings that did not exist then have their
    defaults, it may name settings of other kinds of sources, and it has no listing. If nothing else
    differs, or the same listing lies at another path, what its plan says is kept.
    """
    here = source_settings(source)
    plan = {"source": here, "listing": listing(records)}
    if not (path / PLAN).exists():
        return plan
    written = read_sealed(path / PLAN)
    begun, listed = written.get("source"), written.get("listing")
    if listed is None:
        del plan["listing"]
    if not isinstance(begun, dict) or begun.get("kind") != source.kind:
        return plan
    foreign = SourceConfig.foreign(source.kind)
    own = {name: value for name, value in begun.items() if name not in foreign}
    # How remote files are read changes no record.
    free = ("path", "index", "remote") if listed == plan.get("listing", "") else ("remote",)
    own |= {name: here[name] for name in free if name in here}
    defaults = {f.name: f.default for f in fields(source) if f.default is not MISSING}
    same = json.loads(json.dumps(defaults, default=asdict)) | own == here
    return plan | ({"source": begun} if same else {})


def selection_plan(data: TokenData) -> dict[str, object]:
    """Filters and crop as a plan has them; nothing of what has its default, as in older stores."""
    plan: dict[str, object] = {"filter": data.filter.plan(), "crop": data.crop}
    return {name: value for name, value in plan.items() if value not in ({}, "center")}


def text_plan(data: TokenData) -> dict | str:
    """What the text tokenizer of a store depends on: its file, or how it was trained."""
    if data.text_tokenizer:
        return given_text(data).sha256
    settings = asdict(data.text)
    if data.text.byte_fallback:
        del settings["byte_fallback"]  # as in stores of earlier versions, which had no such setting
    return settings | {"records": data.text_records}
