"""Bundles: a trained system, or a part of one, as a folder that can be copied.

`bundle.json` describes the parts and holds the sha256 of each; `codec/` and `transformer/` hold
Orbax parameters, `text.model` a SentencePiece model. A part may be absent. A transformer records
the codec and text tokenizer it was trained with, and is not to be read with others. Parameters lie
in the types they were written in, and are read as float32 unless another type is asked for.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cogview_jax.checkpoints.stored_tree import restore_tree, save_tree, stored_tree
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import replace_tree, sha256_file, sha256_tree, write_json
from cogview_jax.runtime.paths import local_path
from cogview_jax.runtime.sharding import sharded_shapes
from cogview_jax.tokenizers.codec import Codec, CodecConfig
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.quantiser import Codebook, initial_codebook
from cogview_jax.tokenizers.text import TextTokenizer
from cogview_jax.tokenizers.vocabulary import Vocabulary

FORMAT = 1
FILES = {"codec": "codec", "text": "text.model", "transformer": "transformer"}


@dataclass(frozen=True)
class CodecPart:
    """An image tokenizer: its sizes, parameters and codebook."""

    config: CodecConfig
    params: Any
    codebook: Codebook


@dataclass(frozen=True)
class TransformerPart:
    """A transformer: its sizes, the sequence it was trained on, and its parameters."""

    config: TransformerConfig
    vocabulary: Vocabulary
    layout: LayoutConfig
    params: Any

    @property
    def model(self) -> Transformer:
        """The module of the parameters, which have as many positions as were learned."""
        positions = self.params["position_embedding"].shape[0]
        return Transformer(self.config, self.vocabulary.size, positions, ids=self.vocabulary)


class Bundle:
    """A bundle on disk. Parts are read, and checked against their hashes, when asked for."""

    def __init__(self, path: Path | str):
        """Opens the bundle at `path`.

        Raises:
            InputError: there is none, it is of another format, or its transformer was trained with
                another codec or text tokenizer than the bundle holds.
        """
        self.path = local_path(path, "bundle").absolute()
        file = self.path / "bundle.json"
        if not file.is_file():
            raise InputError(f"{path} is no bundle: there is no {file.name} in it")
        try:
            self.description = json.loads(file.read_text(encoding="utf-8"))
            self.parts: dict[str, dict] = self.description["parts"]
            written = self.description["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is not a description of a bundle ({error!r})") from error
        if written != FORMAT:
            raise InputError(f"{path} has bundle format {written}; this program reads {FORMAT}")
        self._check_companions()

    @property
    def step(self) -> int | None:
        """After how many steps the run that wrote the bundle did so; None if no run did."""
        return self.description.get("step")

    def sha256(self, part: str) -> str:
        """The recorded hash of a part; InputError where the bundle lacks it."""
        if part not in self.parts:
            raise InputError(
                f"bundle {self.path} has no {part}; it has {', '.join(self.parts) or 'no part'}"
            )
        return self.parts[part]["sha256"]

    def text(self) -> TextTokenizer:
        """The text tokenizer."""
        return TextTokenizer.load(self.verified("text"))

    def official(self, part: str) -> dict[str, Any]:
        """What is recorded of the official file a part came from; empty where it came from none."""
        return self.parts[part].get("official", {})

    def codec(self, mesh: jax.sharding.Mesh | None = None) -> CodecPart:
        """The image tokenizer: on one device, or split over `mesh`."""
        path, config = self.verified("codec"), self._codec_config()
        saved = restore_tree(path, sharded_shapes(codec_shapes(config), mesh))
        return CodecPart(config, saved["params"], Codebook(**saved["codebook"]))

    def stored_codec(self) -> CodecPart:
        """The image tokenizer as it lies on disk: every array a `Deferred`, in its own type."""
        saved = stored_tree(self.verified("codec"))
        return CodecPart(self._codec_config(), saved["params"], Codebook(**saved["codebook"]))

    def transformer(
        self, mesh: jax.sharding.Mesh | None = None, dtype: Any = None
    ) -> TransformerPart:
        """The transformer: on one device, or split over `mesh`; as `dtype` if given."""
        path, part = self.verified("transformer"), self._transformer_part({})
        # Bundles of before official ones could be read have as many positions as the layout.
        needed = make_layout(part.layout, part.vocabulary).positions
        positions = self.parts["transformer"].get("positions", needed)
        model = Transformer(part.config, part.vocabulary.size, positions, ids=part.vocabulary)
        shapes = sharded_shapes(transformer_shapes(model), mesh)
        if dtype is not None:
            shapes = jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, dtype, sharding=s.sharding), shapes
            )
        return dataclasses.replace(part, params=restore_tree(path, shapes))

    def stored_transformer(self) -> TransformerPart:
        """The transformer as it lies on disk: every array a `Deferred`, in its own type."""
        return self._transformer_part(stored_tree(self.verified("transformer")))

    def stored_type(self, part: str) -> np.dtype:
        """The type in which the arrays of a part lie on disk."""
        return jax.tree.leaves(stored_tree(self.path / FILES[part]))[0].dtype

    def _codec_config(self) -> CodecConfig:
        return build(CodecConfig, self.parts["codec"]["config"], f"{self.path} codec")

    def _transformer_part(self, params: Any) -> TransformerPart:
        """`params` with what bundle.json says of them."""
        described, where = self.parts["transformer"], f"{self.path} transformer"
        config = build(TransformerConfig, described["config"], where)
        vocabulary = build(Vocabulary, described["vocabulary"], where)
        return TransformerPart(
            config, vocabulary, build(LayoutConfig, described["layout"], where), params
        )

    def _check_companions(self) -> None:
        """Refuses a transformer beside another codec or text tokenizer than its own."""
        for part, own in self.parts.get("transformer", {}).get("trained_with", {}).items():
            if part in self.parts and self.sha256(part) != own:
                raise InputError(
                    f"bundle {self.path}: its transformer was trained with {part} {own[:12]}, "
                    f"but the bundle holds {part} {self.sha256(part)[:12]}"
                )

    def verified(self, part: str) -> Path:
        """Where a part lies, once its files have the recorded hash; InputError if they do not."""
        recorded, path = self.sha256(part), self.path / FILES[part]
        if not path.exists():
            raise InputError(f"bundle {self.path} lacks {path.name}, which bundle.json lists")
        found = _hash(path)
        if found != recorded:
            owner = f"; its transformer was trained with {recorded[:12]}" * (
                "transformer" in self.parts and part != "transformer"
            )
            raise InputError(
                f"bundle {self.path}: {path.name} has sha256 {found[:12]}, but bundle.json "
                f"records {recorded[:12]}{owner}: it was damaged or exchanged"
            )
        return path


def identity(path: Path | str) -> str:
    """What names the contents of the bundle at `path`: the sha256 of bundle.json.

    That file holds the hash of every part.
    """
    return sha256_file(Path(path) / "bundle.json")


def transformer_shapes(model: Transformer) -> Any:
    """The parameters of a transformer as shapes, float32, boxed with their logical axes."""
    tokens = jax.ShapeDtypeStruct((1, 1), "int32")
    return jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]


def codec_shapes(config: CodecConfig) -> dict[str, Any]:
    """The "params" and "codebook" of an image tokenizer as `transformer_shapes` has them."""
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), "float32")
    boxed = jax.eval_shape(Codec(config).init, jax.random.key(0), pixels)["params"]
    size, width = config.codebook, config.code_width
    codebook = jax.eval_shape(lambda: initial_codebook(jax.random.key(0), size, width))
    return {"params": boxed, "codebook": codebook._asdict()}


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
    path = path.absolute()
    temporary = path.with_name(f".tmp-{path.name}")
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    multihost_utils.sync_global_devices("bundle opened")
    parts: dict[str, dict] = {}
    if isinstance(codec, CodecPart):
        tree = {"params": codec.params, "codebook": codec.codebook._asdict()}
        save_tree(temporary / FILES["codec"], tree)
        parts["codec"] = {"config": dataclasses.asdict(codec.config)}
    if transformer is not None:
        save_tree(temporary / FILES["transformer"], transformer.params)
        parts["transformer"] = {
            "config": dataclasses.asdict(transformer.config),
            "vocabulary": dataclasses.asdict(transformer.vocabulary),
            "layout": dataclasses.asdict(transformer.layout),
            "positions": transformer.model.positions,
        }
    for name, record in (official or {}).items():
        parts[name]["official"] = dict(record)
    if first:
        if isinstance(text, TextTokenizer):
            text.save(temporary / FILES["text"])
            parts["text"] = {"pieces": len(text)}
        for name, source in (("codec", codec), ("text", text)):
            if isinstance(source, Bundle):
                _copy(source.verified(name), temporary / FILES[name])
                parts[name] = source.parts[name]
        _describe(temporary, parts, step)
        replace_tree(temporary, path)
    multihost_utils.sync_global_devices("bundle written")


def _describe(path: Path, parts: dict[str, dict], step: int | None) -> None:
    """Writes bundle.json, with the hashes of what lies there."""
    described = {
        name: parts[name] | {"sha256": _hash(path / FILES[name])} for name in FILES if name in parts
    }
    if "transformer" in described:
        described["transformer"]["trained_with"] = {
            name: described[name]["sha256"] for name in ("codec", "text") if name in described
        }
    write_json(path / "bundle.json", {"format": FORMAT, "step": step, "parts": described})


def _hash(path: Path) -> str:
    return sha256_tree(path) if path.is_dir() else sha256_file(path)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)
