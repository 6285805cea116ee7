"""What a transformer's config need not say, since an earlier run has said it: `data.from`.

A config names the workdir of a run, and has its images, its tokenizers and its sizes, or a bundle,
which has no images. What the config file or a flag gives itself always stays. `train` finds what
`prepare` has left in the workdir as well, and a run that is resumed what it began with.
"""

import copy
import functools
import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cogview_jax.checkpoints.adapter import WEIGHTS
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_folder import bundle_folder
from cogview_jax.checkpoints.description import NAME
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.data.filters import FilterConfig
from cogview_jax.data.remote.addresses import is_address
from cogview_jax.data.token_shards import MANIFEST
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import named_by
from cogview_jax.runtime.processes import log
from cogview_jax.tasks.experiment import (
    CodecExperiment,
    Experiment,
    TransformerExperiment,
    experiment_type,
    read_experiment,
)
from cogview_jax.tasks.stored_tokens import TOKENIZERS, store_path
from cogview_jax.tasks.workdir import Workdir, flat_settings, read_settings, resolved_settings

FROM, SOURCE = "data.from", "data.source"
#: Sizes of the vocabulary and of a sequence, which finetuning does not change.
SIZES = ("vocabulary.codes", "vocabulary.text", "layout.grid", "layout.text_length")
#: Which images of a source are used.
FILTERS = tuple(f"data.filter.{field.name}" for field in fields(FilterConfig))
#: What the content of a token store depends on besides the images and the sizes.
STORED = (
    *("data.image_tokenizer", "data.text_tokenizer", "data.text_records", "data.image_grid"),
    *("data.text.pieces", "data.text.algorithm", "data.text.character_coverage"),
    *("data.text.byte_fallback", "data.encode_precision", "data.shard_size"),
    *("data.views", "data.smallest_crop", "data.largest_crop", "data.flip", "data.crop"),
    *FILTERS,
)


def resolve(
    config: Mapping[str, Any],
    given: Mapping[str, str],
    workdir: Workdir | None = None,
    *,
    may_be_absent: bool = False,
) -> tuple[Experiment, dict[str, str]]:
    """The experiment that a config describes, with what it has of earlier runs.

    Args:
        config: with every setting, as `experiment_flag` gives it.
        given: where each setting that the user gave comes from, by dotted name; all others may be
            an earlier run's.
        workdir: that the experiment is for; None for none.
        may_be_absent: goes on without the earlier run where there is none yet: for a dry run, which
            needs the sizes alone.

    Returns:
        The experiment, and where its settings come from, as `given` has it.

    Raises:
        InputError: `data.from` names no run that can be used, or the config is wrong.
    """
    settings = config.to_dict() if hasattr(config, "to_dict") else copy.deepcopy(dict(config))
    if experiment_type(settings) is not TransformerExperiment:
        return read_experiment(settings), dict(given)
    merging = _Merging(settings, given)
    name, left = merging[FROM], None if workdir is None else _left(workdir)
    by_flag = given.get(FROM, "").startswith("--")
    if workdir and left and (not by_flag or left.data.from_ == name):
        merging.take(_offers(left, (FROM, "data.store", *STORED, *SIZES)), workdir.shown)
    elif name and may_be_absent and not bundle_folder(name).exists():
        log(f"{FROM} {name} is not there yet: sizes are those of the config")
    elif name:
        _take_from(name, merging)
    return read_experiment(merging.settings), merging.origins


def _left(workdir: Workdir) -> TransformerExperiment | None:
    """What an earlier command has left in a workdir; None where there is nothing of use."""
    for file in (workdir.config, workdir.prepared):
        if file.exists():
            found = read_settings(file)
            return found if isinstance(found, TransformerExperiment) else None
    return None


class _Merging:
    """The settings of a config, of which those that nobody gave are still open."""

    def __init__(self, settings: dict[str, Any], given: Mapping[str, str]):
        self.settings, self.origins = copy.deepcopy(settings), dict(given)
        self._given = given

    def __getitem__(self, name: str) -> Any:
        section, _, key = name.rpartition(".")
        return functools.reduce(operator.getitem, section.split("."), self.settings).get(key)

    def copy(self) -> "_Merging":
        return _Merging(self.settings, self._given)

    def take(self, offers: Mapping[str, Any], origin: str) -> list[str]:
        """Fills open settings; the names of those that stay though another value is offered."""
        kept = []
        if self.settings["data"].get("mixture"):  # its stores are in the place of that one
            offers = {name: value for name, value in offers.items() if name != "data.store"}
        for name, value in self._of_this_kind(offers, origin):
            # A file that names one run is overruled by the flag that `prepare` had.
            if self._origin(name) and name != FROM:
                if json.dumps(self[name]) != json.dumps(value):  # where tuples are lists
                    kept.append(name)
                continue
            section, _, key = name.rpartition(".")
            functools.reduce(operator.getitem, section.split("."), self.settings)[key] = value
            self.origins[name] = origin
        return kept

    def kept_of_file(self, names: list[str]) -> list[str]:
        """Those of `names` that the config file gives: a flag is what its user has in mind."""
        return [name for name in names if not self._origin(name).startswith("--")]

    def _of_this_kind(self, offers: Mapping[str, Any], origin: str) -> Iterator[tuple[str, Any]]:
        """The offers, the source's setting by setting.

        A source of another kind is taken as a whole, unless the config says more of its own than
        its kind, or a flag says that.
        """
        offers = dict(offers)
        source = offers.pop(SOURCE, None)
        if source is not None:
            kind = f"{SOURCE}.kind"
            own = self.settings["data"].get("source") or {}
            said = [name for name in self._given if name.startswith(f"{SOURCE}.") and name != kind]
            if own.get("kind", source["kind"]) != source["kind"]:
                if said or self._origin(kind).startswith("--"):
                    source = {}
                else:
                    own, self.origins[SOURCE] = {}, origin
            self.settings["data"]["source"] = dict(own) or {"kind": source["kind"]}
            yield from ((f"{SOURCE}.{k}", v) for k, v in source.items() if k != "kind")
        yield from offers.items()

    def _origin(self, name: str) -> str:
        """Where a setting, a section that holds it, or one in it was given; empty if nowhere."""
        sections = [name, *(name[:i] for i, letter in enumerate(name) if letter == ".")]
        within = [place for place in self._given if place.startswith(f"{name}.")]
        places = [place for place in sections if place in self._given] + within
        return self._given[places[0]] if places else ""


def _offers(run: TransformerExperiment, names: tuple[str, ...]) -> dict[str, Any]:
    """The run's source and the settings `names`, by dotted name."""
    settings = resolved_settings(run)
    flat = dict(flat_settings(settings))
    return {SOURCE: settings["data"]["source"]} | {name: flat[name] for name in names}


def _take_from(name: str, merging: _Merging) -> None:
    """Fills what is open with what the run in the workdir `name`, or the bundle `name`, has."""
    with named_by(FROM, name):
        folder = bundle_folder(name)
        if (folder / NAME).exists() or (folder / WEIGHTS).exists():
            kept = merging.take(_of_bundle(open_bundle(folder), name), FROM)
        elif isinstance(run := _run_in(workdir := Workdir(name), name), CodecExperiment):
            kept = merging.take(_of_codec(run, workdir, name), FROM)
        else:
            kept = _take_from_transformer(run, workdir, name, merging)
    if kept := merging.kept_of_file(kept):
        log(f"{FROM} {name}: the config's own {', '.join(kept)} stays")


def _of_bundle(bundle: Bundle, name: str) -> dict[str, Any]:
    """What a transformer has of a bundle: its tokenizers, and its sizes as far as it has any."""
    codec = bundle.codec_config()
    found = {
        "data.image_tokenizer": name,
        "vocabulary.codes": codec.codebook,
        "layout.grid": codec.grid,
    }
    if "text" in bundle.parts:
        file = bundle.verified("text")
        # A copy of what is at an address may be deleted.
        found["data.text_tokenizer"] = f"{name}/{file.name}" if is_address(name) else str(file)
    entry = bundle.parts.get("transformer", {})
    return found | {setting: value for setting, value in flat_settings(entry) if setting in SIZES}


def _run_in(workdir: Workdir, name: str) -> Experiment:
    if workdir.config.exists():
        return read_settings(workdir.config)
    advice = ""
    if (workdir.path.parent / "config.json").exists():
        advice = f"; did you mean {Path(name).parent}?"
    if workdir.prepared.exists():
        advice = ", it was only prepared: `cogview train` with the same --workdir begins it"
    raise InputError(
        "expected the workdir of a run, or a bundle, and there is neither config.json nor"
        f" bundle.json in it{advice}"
    )


def _of_codec(run: CodecExperiment, workdir: Workdir, name: str) -> dict[str, Any]:
    """What a transformer has of the run of its image tokenizer."""
    if not workdir.bundle.exists():
        raise InputError(
            "its image tokenizer is not trained to the end, there is no bundle yet: finish it with"
            f" the same `cogview train ... --workdir {name}`"
        )
    codec, settings = Bundle(workdir.bundle).codec_config(), resolved_settings(run)
    source, flat = settings["data"]["source"], dict(flat_settings(settings))
    # An image tokenizer needs no captions, and a transformer does.
    source.pop("require_captions")
    # Squares at random places teach an image tokenizer; a transformer needs several views for them.
    crop = {"data.crop": run.data.crop} if run.data.crop == "pad" else {}
    return {
        SOURCE: source,
        **{name: flat[name] for name in FILTERS},
        **crop,
        "data.image_tokenizer": f"{name}/bundle",
        "vocabulary.codes": codec.codebook,
        "layout.grid": codec.grid,
    }


def _take_from_transformer(
    run: TransformerExperiment, workdir: Workdir, name: str, merging: _Merging
) -> list[str]:
    """Takes the run's token store where the config needs the same one, else its tokenizers."""
    store = store_path(run.data, workdir)
    shown = str(store) if run.data.mixture else run.data.store or f"{name}/tokens"
    if not run.data.mixture and (store.is_file() or (store / MANIFEST).exists()):
        whole = merging.copy()
        offers = _offers(run, (*STORED, *SIZES)) | {"data.store": shown}
        kept = whole.take(offers, FROM)
        of_store = [x for x in kept if x in STORED or x.startswith("data.store")]
        if not of_store and _same_codes(run, whole.settings):
            return merging.take(offers, FROM)
    offers = _offers(run, ("data.image_grid", *SIZES))
    if store.is_file():
        offers |= {
            "data.image_tokenizer": run.data.image_tokenizer,
            "data.text_tokenizer": run.data.text_tokenizer,
        }
    else:
        tokenizers = f"{shown}/{TOKENIZERS}"
        if not (store / TOKENIZERS / "bundle.json").exists():
            tokenizers = f"{name}/bundle"
        if not (Path(tokenizers) / "bundle.json").exists():
            raise InputError(
                f"there are no tokenizers, since neither its token store {shown}"
                f" nor {name}/bundle is there"
            )
        offers |= {
            "data.image_tokenizer": tokenizers,
            "data.text_tokenizer": f"{tokenizers}/text.model",
        }
    return merging.take(offers, FROM)


def _same_codes(run: TransformerExperiment, settings: Mapping[str, Any]) -> bool:
    """Whether the token store of a run has the images that the settings ask for."""
    wanted = read_experiment(settings)
    assert isinstance(wanted, TransformerExperiment)
    same = wanted.image_grids == run.image_grids
    return same and wanted.data.source == run.data.source
