"""Any step of a run as a bundle.

A checkpoint's notes say, as `BUNDLE`, what bundle.json would of the bundle that is written from it.
A part whose arrays lie in the checkpoint has "arrays" in the place of its hash: a tree like that of
the part, of names such as "ema/blocks/kernel". Another part has "paths", where it may be found. A
transformer with "adapts" has the arrays of low-rank adapters, and there what they are merged into:
the path and the hash of a bundle's transformer, and the settings of the adapters.
"""

import copy
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from cogview_jax.checkpoints.adapted import merged_on_host, with_positions
from cogview_jax.checkpoints.adapted_bundle import AdaptedBundle
from cogview_jax.checkpoints.adapter import WEIGHTS as ADAPTER_WEIGHTS
from cogview_jax.checkpoints.bundle import Bundle, part_sha256
from cogview_jax.checkpoints.bundle_folder import bundle_folder
from cogview_jax.checkpoints.description import FORMAT, NAME, described
from cogview_jax.checkpoints.manifest import find_damage, listed
from cogview_jax.checkpoints.safetensors_metadata import read_metadata
from cogview_jax.checkpoints.shipped import shipped
from cogview_jax.checkpoints.stored_step import META, one_line, read_meta
from cogview_jax.checkpoints.stored_tree import nested, picked_tree, placed, restore_picked
from cogview_jax.data.remote.addresses import is_address
from cogview_jax.models.lora import LoRAConfig
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.paths import check_tree
from cogview_jax.runtime.processes import log

#: The note of a checkpoint that describes its bundle.
BUNDLE = "bundle"


def open_bundle(path: Path | str) -> Bundle:
    """Opens a bundle, a step of a run (WORKDIR/checkpoints/STEP), or the workdir of a run.

    Of a workdir its bundle is taken, and the newest checkpoint that is whole while there is none.
    The name of a shipped bundle will do, the address of a bundle (`remote_bundle`), and a folder of
    adapters of a shipped bundle.

    Raises:
        InputError: there is none of them, or it is damaged; see `Bundle`.
    """
    folder = bundle_folder(path).absolute()
    if (folder / ADAPTER_WEIGHTS).exists():
        return AdaptedBundle(folder, _base_of(folder))
    if (folder / META).exists():
        return StepBundle(folder)
    if (folder / NAME).exists():
        return Bundle(folder)
    if (folder / "bundle" / NAME).exists():
        return Bundle(folder / "bundle")
    steps = sorted(map(int, filter(str.isdecimal, _names(folder / "checkpoints"))), reverse=True)
    if not steps and (folder / "config.json").exists():
        raise InputError(
            f"{folder} is the workdir of a run without a bundle and without a checkpoint yet: they"
            " come every train.checkpoint_every steps, and the bundle at the end"
        )
    if not steps and str(path) in shipped():
        raise InputError(
            f"{folder} is no bundle, and hides the shipped one of that name: rename it, or work in"
            " another folder"
        )
    return _newest_whole(folder / "checkpoints", steps) if steps else Bundle(folder)


def is_bundle(path: Path | str) -> bool:
    """Whether a folder is one that `open_bundle` opens, and none of other files: images, say.

    An address is taken for one.
    """
    if is_address(str(path)):
        return True
    folder = Path(path)
    if not folder.exists():
        return str(path) in shipped()
    run = (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()
    files = (NAME, META, ADAPTER_WEIGHTS, Path("bundle", NAME))
    return run or any((folder / file).is_file() for file in files)


def located(path: str) -> str:
    """The folder of the bundle or checkpoint that `open_bundle` takes for `path` now."""
    return str(open_bundle(path).path)


def named_arrays(item: str, tree: Any) -> Any:
    """A tree like `tree` of the names that its arrays have in a checkpoint's item."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: "/".join([item, *(str(_key(key)) for key in keys)]), tree
    )


class _Undescribed(InputError):
    """A checkpoint without a note of its bundle; its run has no others."""


@dataclass(frozen=True)
class _Base:
    """What the adapters of a checkpoint are merged into: a bundle's transformer, and how."""

    path: str
    sha256: str
    lora: LoRAConfig


class StepBundle(Bundle):
    """The bundle that a checkpoint describes."""

    def __init__(self, folder: Path):
        """Opens the checkpoint in `folder`.

        Raises:
            InputError: it describes no bundle, or what it says cannot be read.
        """
        self.path = folder
        try:
            meta = read_meta(folder)
            parts = copy.deepcopy(meta.get("notes", {}).get(BUNDLE))
            files = listed(folder)
        except (OSError, ValueError) as error:
            raise InputError(f"checkpoint {folder} cannot be read: {one_line(error)}") from error
        if parts is None:
            raise _Undescribed(
                f"checkpoint {folder} does not describe a bundle: it is of an earlier version;"
                " finish its run, at this step with"
                f" --config.train.steps={meta.get('step')}, and use the bundle that it writes"
            )
        try:
            self._take_places(parts, files)
            raw = {"format": FORMAT, "step": meta["step"], "parts": parts}
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"checkpoint {folder} describes no bundle ({error!r})") from error
        self._described = described(raw, folder)
        self.description, self.parts = raw, parts
        self._whole: set[str] = set()

    def _take_places(self, parts: dict[str, Any], files: Mapping[str, tuple[int, str]]) -> None:
        """Takes out of a note where each part lies, and puts in the hash of what lies here.

        Args:
            parts: the note, which is changed to what bundle.json has as "parts".
            files: from `manifest.listed`.
        """
        adapts = parts.get("transformer", {}).pop("adapts", None)
        where = f"checkpoint {self.path}: adapts"
        self._adapts = None if adapts is None else build(_Base, adapts, where)
        self._arrays = {
            part: entry.pop("arrays") for part, entry in parts.items() if "arrays" in entry
        }
        self._places = {
            part: [Path(os.path.normpath(self.path / path)) for path in entry.pop("paths")]
            for part, entry in parts.items()
            if part not in self._arrays
        }
        for part in self._arrays:
            items = self._items(part)
            lines = [f"{files[x][1]}  {x}\n" for x in sorted(files) if x.split("/")[0] in items]
            if part == "transformer" and self._adapts:
                lines.append(f"{self._adapts.sha256}  base\n")
            parts[part]["sha256"] = hashlib.sha256("".join(lines).encode()).hexdigest()

    def verified(self, part: str) -> Path:
        """Where a part lies, once it is known to be what was written or trained with."""
        recorded, path = self.sha256(part), self._place(part)
        if part in self._whole:
            return path
        if part in self._arrays:
            if damage := find_damage(path, within=self._items(part)):
                raise InputError(f"checkpoint {path} is damaged ({damage[0]})")
        else:
            check_tree(path)
            if (found := retried(lambda: part_sha256(path), str(path))) != recorded:
                raise InputError(
                    f"checkpoint {self.path} was trained with {part} {recorded[:12]}, but {path}"
                    f" holds {found[:12]}"
                )
        self._whole.add(part)
        return path

    def check_own(self) -> None:
        """InputError where the checkpoint's own files are not as they were written."""
        for part in self._arrays:
            self.verified(part)

    def _place(self, part: str) -> Path:
        if part in self._arrays:
            return self.path
        for place in self._places[part]:
            if place.exists():
                return place
        raise InputError(
            f"checkpoint {self.path} was trained with the {part} in {self._places[part][0]}, which"
            " is gone: put it back there"
        )

    def _items(self, part: str) -> set[str]:
        """The folders of the checkpoint that hold a part."""
        return {name.split("/")[0] for name in jax.tree.leaves(self._arrays[part])}

    def _tree(self, part: str, path: Path) -> dict[str, Any]:
        if part not in self._arrays:
            return super()._tree(part, path)
        picked = picked_tree(path, self._arrays[part])
        return self._merged(picked) if self._merges(part) else picked

    def _merges(self, part: str) -> bool:
        """Whether the arrays of a part are adapters of another transformer."""
        return part == "transformer" and self._adapts is not None

    def _merged(self, adapters: dict[str, Any]) -> dict[str, Any]:
        """The transformer that `adapters` adapt, with them."""
        assert self._adapts is not None, "only adapters are merged"
        place, recorded = self._adapts.path, self._adapts.sha256
        try:
            base = open_bundle(place)
        except InputError as error:
            raise InputError(
                f"checkpoint {self.path} adapts the transformer of {place}: put it back there"
                f" ({error})"
            ) from error
        if (found := base.sha256("transformer")) != recorded:
            raise InputError(
                f"checkpoint {self.path} adapts transformer {recorded[:12]}, but {place} holds"
                f" {found[:12]}"
            )
        params = base.stored_transformer().params
        positions = self._transformer_entry.learned_positions
        made = jax.tree.map(lambda array: array.make(), adapters)
        return merged_on_host(with_positions(params, positions), made, self._adapts.lora)

    def _restored(self, part: str, path: Path, shapes: Mapping[str, Any]) -> Any:
        if part in self._arrays:
            return nested(self._restored_each(part, path, shapes))
        return super()._restored(part, path, shapes)

    def _restored_each(
        self, part: str, path: Path, shapes: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        if self._merges(part):
            return placed(self._tree(part, path), shapes)
        if part in self._arrays:
            return restore_picked(path, self._arrays[part], shapes)
        return super()._restored_each(part, path, shapes)


def _base_of(adapter: Path) -> Bundle:
    """The shipped bundle that a folder of adapters is of.

    What the folder says of other places is not followed: they are not what the user named.
    """
    base = read_metadata(adapter / ADAPTER_WEIGHTS).get("base")
    for bundle in (Bundle(folder) for folder in shipped().values() if (folder / NAME).exists()):
        if bundle.parts.get("transformer", {}).get("sha256") == base:
            return bundle
    raise InputError(
        f"{adapter} is an adapter of transformer {str(base)[:12]}, which no shipped bundle holds:"
        f" cogview convert --adapter {adapter} --bundle BASE --out BUNDLE makes a bundle of it"
    )


def _newest_whole(folder: Path, steps: list[int]) -> StepBundle:
    """The newest checkpoint of a run that is whole; says which are passed over."""
    reasons: list[str] = []
    for step in steps:
        try:
            found = StepBundle(folder / str(step))
            found.check_own()
        except _Undescribed:
            raise
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            log(f"{reason}: {found.path} is used instead")
        if not reasons:
            log(f"{folder.parent} has no bundle yet: its checkpoint {step} is used")
        return found
    raise InputError(
        f"{folder.parent} has no bundle, and of its {len(reasons)} checkpoints none can be used:"
        f" restore one from a copy, or train again ({'; '.join(reasons)})"
    )


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _key(key: Any) -> Any:
    """What Orbax calls a key of a tree: those of dicts and of named tuples have a name."""
    return next(getattr(key, of) for of in ("key", "name", "idx") if hasattr(key, of))
