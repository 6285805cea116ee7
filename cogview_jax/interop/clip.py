"""CLIP in the folders of Hugging Face's transformers: `model.safetensors` and `config.json`, read.

Sizes are those of the config, heads, activation and epsilon too; where the config leaves one out it
is the default of transformers. The names and shapes of the file are checked against them from both
sides. The tokenizer lies in the same folder (`interop.clip_text`).
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from cogview_jax.interop.rules import CONVOLUTION, LINEAR, SAME, TABLE, Rule, to_ours
from cogview_jax.interop.safetensors_arrays import TYPES
from cogview_jax.models.networks.clip import ClipConfig, ClipWeights, TowerConfig
from cogview_jax.runtime.config import build, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
#: Arrays of a file that no embedding depends on; the first two are only in older files.
UNUSED = (
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
    "logit_scale",
)


@dataclass(frozen=True, kw_only=True)
class _Tower:
    """A section of config.json; the names are those of transformers."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 12
    num_attention_heads: int
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = {field.name for field in dataclasses.fields(self) if field.type is int}
        require_range(self, *sorted(sizes - {"eos_token_id"}), at_least=1)
        require_range(self, "layer_norm_eps", at_least=0)
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size = {self.hidden_size} is no multiple of num_attention_heads ="
                f" {self.num_attention_heads}"
            )

    def config(self) -> TowerConfig:
        return TowerConfig(self.num_attention_heads, self.hidden_act, self.layer_norm_eps)


@dataclass(frozen=True, kw_only=True)
class _Text(_Tower):
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "eos_token_id", at_least=0, below=self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class _Image(_Tower):
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise InputError(
                f"patch_size = {self.patch_size} is larger than image_size = {self.image_size}"
            )


@dataclass(frozen=True)
class _Stored:
    """A tensor of a safetensors file that is open."""

    opened: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.opened.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> np.dtype | None:
        return TYPES.get(self.opened.get_slice(self.name).get_dtype())

    def read(self) -> np.ndarray:
        return self.opened.get_tensor(self.name)


def clip_folder(path: Path | str) -> Path:
    """The folder of a model that is named by its folder or by its file of weights.

    Raises:
        InputError: there is no `model.safetensors`.
    """
    path = Path(path)
    folder = path.parent if path.name == WEIGHTS else path
    if not (folder / WEIGHTS).is_file():
        advice = "" if folder.is_dir() else ", a folder with both,"
        if (folder / "pytorch_model.bin").is_file():
            advice = " (pytorch_model.bin is a pickle, which is not read)"
        elif (folder / f"{WEIGHTS}.index.json").is_file():
            advice = " (weights in several files are not read)"
        raise InputError(f"no CLIP at {path}: expected {WEIGHTS} and {CONFIG}{advice}")
    return folder


def read_clip(path: Path | str) -> ClipWeights:
    """The weights of a CLIPModel, float32.

    Args:
        path: a folder with `model.safetensors` and `config.json`, or that file in it.

    Raises:
        InputError: there is none, it is of another model, or an array is missing, unknown or of
            another shape than the config says.
    """
    folder = clip_folder(path)
    text, image, width = _read_config(folder / CONFIG)
    with _opened(folder / WEIGHTS) as state:
        if max(text.num_hidden_layers, image.num_hidden_layers) > len(state):
            raise InputError(f"{folder / WEIGHTS}: fewer arrays than {CONFIG} says it has layers")
        if "logit_scale" not in state:
            raise InputError(
                f"{folder / WEIGHTS} lacks logit_scale: expected both towers of a CLIPModel"
            )
        given: dict[str, dict[str, Any]] = {"text": {}, "image": {}}
        for name, tensor in state.items():
            if name not in UNUSED:
                tower = "image" if name.startswith(("vision_model.", "visual_")) else "text"
                given[tower][name] = tensor
        trees = {
            tower: to_ours(rules, given[tower], shapes, f"{folder / WEIGHTS} ({tower} tower)")
            for tower, rules, shapes in (
                ("image", IMAGE_RULES, image_shapes(image, width)),
                ("text", TEXT_RULES, text_shapes(text, width)),
            )
        }
        trees = jax.tree.map(lambda array: jnp.asarray(array.make(), jnp.float32), trees)
    config = ClipConfig(image.config(), text.config(), image.image_size, text.eos_token_id)
    return ClipWeights(config=config, **trees)


def text_shapes(sizes: _Text, width: int) -> dict[str, Any]:
    """The text tower; `width` is that of the embeddings."""
    d = sizes.hidden_size
    return {
        "tokens": _array(sizes.vocab_size, d),
        "positions": _array(sizes.max_position_embeddings, d),
        "layers": _layer_shapes(sizes),
        "last_norm": _norm_shapes(d),
        "projection": _array(d, width),
    }


def image_shapes(sizes: _Image, width: int) -> dict[str, Any]:
    """The image tower; `width` is that of the embeddings."""
    d, side = sizes.hidden_size, sizes.patch_size
    return {
        "class_token": _array(d),
        "patches": _array(side, side, 3, d),
        "positions": _array((sizes.image_size // side) ** 2 + 1, d),
        "first_norm": _norm_shapes(d),
        "layers": _layer_shapes(sizes),
        "last_norm": _norm_shapes(d),
        "projection": _array(d, width),
    }


def _layer_shapes(sizes: _Tower) -> dict[str, Any]:
    d, hidden = sizes.hidden_size, sizes.intermediate_size
    maps = {name: (d, d) for name in ("query", "key", "value", "out")}
    maps |= {"expand": (d, hidden), "contract": (hidden, d)}
    count = sizes.num_hidden_layers
    linear = {
        name: {"kernel": _array(count, *shape), "bias": _array(count, shape[1])}
        for name, shape in maps.items()
    }
    return linear | {name: _norm_shapes(count, d) for name in ("norm1", "norm2")}


def _norm_shapes(*shape: int) -> dict[str, Any]:
    return {"scale": _array(*shape), "bias": _array(*shape)}


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{theirs}.weight", f"{ours}.scale", SAME),
        Rule(f"{theirs}.bias", f"{ours}.bias", SAME),
    )


def _layer_rules(tower: str) -> Iterator[Rule]:
    theirs = f"{tower}.encoder.layers.{{}}"
    for name, ours in (
        ("self_attn.q_proj", "query"),
        ("self_attn.k_proj", "key"),
        ("self_attn.v_proj", "value"),
        ("self_attn.out_proj", "out"),
        ("mlp.fc1", "expand"),
        ("mlp.fc2", "contract"),
    ):
        yield Rule(f"{theirs}.{name}.weight", f"layers.{ours}.kernel", LINEAR)
        yield Rule(f"{theirs}.{name}.bias", f"layers.{ours}.bias", SAME)
    for i in (1, 2):
        yield from _norm(f"{theirs}.layer_norm{i}", f"layers.norm{i}")


TEXT_RULES = (
    Rule("text_model.embeddings.token_embedding.weight", "tokens", TABLE),
    Rule("text_model.embeddings.position_embedding.weight", "positions", TABLE),
    *_layer_rules("text_model"),
    *_norm("text_model.final_layer_norm", "last_norm"),
    Rule("text_projection.weight", "projection", LINEAR),
)
IMAGE_RULES = (
    Rule("vision_model.embeddings.class_embedding", "class_token", SAME),
    Rule("vision_model.embeddings.patch_embedding.weight", "patches", CONVOLUTION),
    Rule("vision_model.embeddings.position_embedding.weight", "positions", TABLE),
    *_norm("vision_model.pre_layrnorm", "first_norm"),  # so spelt there
    *_layer_rules("vision_model"),
    *_norm("vision_model.post_layernorm", "last_norm"),
    Rule("visual_projection.weight", "projection", LINEAR),
)


@contextmanager
def _opened(file: Path) -> Iterator[dict[str, _Stored]]:
    """The tensors of a file, by name, to be read inside the block."""
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            yield {name: _Stored(opened, name) for name in opened.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} is no safetensors file ({reason})") from error


def _read_config(file: Path) -> tuple[_Text, _Image, int]:
    """Sizes of both towers, and the width of the embeddings."""
    if not file.is_file():
        raise InputError(f"no {CONFIG} beside {WEIGHTS} in {file.parent}")
    config = read_json(file)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "clip":
        raise InputError(f"{file}: model_type = {kind!r}, expected 'clip': a CLIPModel")
    text = build(_Text, _section(config, "text_config", _Text, file), f"{file}: text_config")
    image = build(_Image, _section(config, "vision_config", _Image, file), f"{file}: vision_config")
    width = config.get("projection_dim", 512)
    if type(width) is not int or width < 1:
        raise InputError(f"{file}: projection_dim = {width!r}, expected at least 1")
    return text, image, width


def _section(config: dict[str, Any], name: str, cls: type, file: Path) -> dict[str, Any]:
    """The settings of a tower that matter here; older files repeat a section under another name."""
    found: dict[str, Any] = {}
    for key in (name, f"{name}_dict"):
        section = config.get(key) or {}
        if not isinstance(section, dict):
            raise InputError(f"{file}: {key} is no section")
        found |= section
    known = {field.name for field in dataclasses.fields(cls)}
    return {key: value for key, value in found.items() if key in known}
