"""Low-rank adapters (`models.lora`) as files of PEFT.

A folder holds adapter_model.safetensors, in which layer I of the transformer has
`base_model.model.blocks.I.attention.qkv.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], and
adapter_config.json (both as PEFT 0.21 reads them into a torch model whose linear layers have these
names). The output of qkv is the queries, keys and values, one behind the other. The metadata of the
first file name the base by its hash and say all that bundle.json says of the merged transformer.

PEFT ignores keys that it does not know and only warns of missing ones; here both are refused.

Legend: L layers, D input width, F output shape, r rank.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.checkpoints.description import TransformerEntry
from cogview_jax.checkpoints.safetensors_metadata import DESCRIPTION, read_metadata
from cogview_jax.checkpoints.stored_tree import sizes
from cogview_jax.models.lora import (
    LORA_A,
    LORA_B,
    LoRAConfig,
    adapter_pairs,
    adapter_shapes,
)
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, read_json, write_json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
#: Settings of PEFT that change what an adapter computes, and the only values that are understood.
UNDERSTOOD: dict[str, Any] = {
    **{"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False},
    **{"use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}},
}


@dataclass(frozen=True)
class StoredAdapter:
    """A folder of adapters, read.

    Attributes:
        lora: rank, alpha, targets, and the type of the base that they were trained on.
        base: the hash of the transformer that they adapt.
        step: after how many steps they were written.
        entry: what bundle.json says of the merged transformer, whose hash is left empty.
        arrays: the file's arrays by name.
    """

    lora: LoRAConfig
    base: str
    step: int | None
    entry: TransformerEntry
    arrays: dict[str, np.ndarray]


def write_adapter(
    folder: Path,
    adapters: Mapping[str, Any],
    lora: LoRAConfig,
    part: TransformerPart,
    *,
    base: str,
    base_path: str,
    step: int,
) -> None:
    """Writes a folder of adapters, whole or not at all.

    Args:
        folder: is replaced if it is there.
        adapters: NumPy arrays, a tree as in `models.lora.initial_adapters`.
        lora: their rank, alpha and targets.
        part: the merged transformer; its parameters are not read.
        base: the hash of the transformer that was adapted.
        base_path: its bundle.
        step: after how many steps they are written.
    """
    about: dict[str, Any] = {"base": base, "base_dtype": lora.base_dtype, "step": step}
    about |= part.entry(part.model.positions)
    description = json.dumps(about, sort_keys=True)
    arrays = {}
    for path, a, b in adapter_pairs(adapters["blocks"]["block"]):
        for layer in range(len(a)):
            name = _name(layer, ".".join(path))
            arrays[name.format(LORA_A)] = np.array(a[layer].T, order="C")
            arrays[name.format(LORA_B)] = np.array(b[layer].reshape(len(b[layer]), -1).T, order="C")
    config = {
        **UNDERSTOOD,
        **{"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0},
        **{"target_modules": list(lora.targets), "task_type": None, "inference_mode": True},
        "base_model_name_or_path": base_path,
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        metadata = {"format": "pt", DESCRIPTION: description}
        (temporary / WEIGHTS).write_bytes(_same_bytes(safetensors.numpy.save(arrays, metadata)))
        write_json(temporary / CONFIG, config)


def _same_bytes(file: bytes) -> bytes:
    """A safetensors file whose bytes follow from what it holds.

    The library writes several entries of metadata in another order each time. A file begins with
    the size of its header, 8 bytes, and the header, JSON that spaces fill up to a multiple of 8.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[end:]


def read_adapter(folder: Path) -> StoredAdapter:
    """Reads a folder that `write_adapter` wrote.

    Raises:
        InputError: it is none, or adapters of another kind.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is no folder of an adapter: it has no {name}")
    file, weights = folder / CONFIG, folder / WEIGHTS
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(f"{file} holds no JSON object")
    for name, understood in UNDERSTOOD.items():
        if (value := config.get(name) or understood) != understood:
            raise InputError(f"{file}: {name} = {str(value)[:60]}: expected {understood}")
    about = read_metadata(weights)
    if not isinstance(about.get("base"), str):
        raise InputError(f"{weights} does not say which transformer it adapts (base)")
    named = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets"}
    given = {ours: config[theirs] for theirs, ours in named.items() if theirs in config}
    if missing := [theirs for theirs, ours in named.items() if ours not in given]:
        raise InputError(f"{file} lacks {missing[0]}")
    lora = build(LoRAConfig, given | {"base_dtype": about.get("base_dtype")}, str(file))
    if not lora.rank:
        raise InputError(f"{file}: r = 0: expected at least 1")
    known = {field.name for field in dataclasses.fields(TransformerEntry)}
    described = {name: value for name, value in about.items() if name in known}
    entry = build(TransformerEntry, described | {"sha256": ""}, str(weights))
    with safetensors.safe_open(weights, framework="numpy") as opened:
        names = list(opened.keys())
        types = {opened.get_slice(name).get_dtype() for name in names}
        if types - {"F32"}:
            raise InputError(f"{weights} has arrays of type {min(types - {'F32'})}, expected F32")
        arrays = {name: opened.get_tensor(name) for name in names}
    return StoredAdapter(lora, about["base"], about.get("step"), entry, arrays)


def stacked(found: StoredAdapter, base: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arrays of an adapter as a tree, stacked by layer.

    Args:
        found: the adapter.
        base: the parameters that it adapts, or anything with their shapes.
        where: the name of the file, for errors.

    Raises:
        InputError: an array is missing, unknown or of another shape.
    """
    tree: dict[str, Any] = {}
    left = dict(found.arrays)
    for name, (layers, *shape) in sizes(adapter_shapes(base, found.lora)).items():
        *path, kind = name.split(".")
        theirs = (shape[1], shape[0]) if kind == LORA_A else (int(np.prod(shape[1:])), shape[0])
        pieces = []
        for key in _names(layers, ".".join(path[2:]), kind):
            piece = left.pop(key, None)
            if piece is None:
                raise InputError(f"{where} lacks {key}")
            if piece.shape != theirs:
                raise InputError(
                    f"{where}: {key} has shape {list(piece.shape)}, expected {list(theirs)}"
                )
            pieces.append(piece.T.reshape(shape))
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node[kind] = np.stack(pieces)
    if left:
        raise InputError(f"{where} has {min(left)[:200]}, which is no array of its target layers")
    return tree


def _name(layer: int, module: str) -> str:
    return f"base_model.model.blocks.{layer}.{module}.{{}}.weight"


def _names(layers: int, module: str, kind: str) -> Iterator[str]:
    return (_name(layer, module).format(kind) for layer in range(layers))
