"""Bundles: a trained system, or a part of one, as a folder that can be copied.

`bundle.json` describes the parts and holds the sha256 of each; `codec/` and `transformer/` hold
Orbax parameters, `text.model` a SentencePiece model. A part may be absent. A transformer records
the codec and text tokenizer it was trained with, and is not to be read with others. Parameters lie
in the types they were written in, and are read as float32 unless another type is asked for; only to
sample are kernels in 8 bits read as they are.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.description import (
    CodecEntry,
    TransformerEntry,
    check_fit,
    read_description,
)
from cogview_jax.checkpoints.manifest import NAME as MANIFEST
from cogview_jax.checkpoints.quantized_tree import dequantized_tree
from cogview_jax.checkpoints.stored_tree import (
    check_shapes,
    nested,
    placed,
    restore_each,
    restore_tree,
    sizes,
    stored_tree,
)
from cogview_jax.models.layer_params import unstack_arrays
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.quantization import quantized_arrays, quantized_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import (
    sha256_file,
    sha256_tree,
)
from cogview_jax.runtime.paths import check_tree, inside, local_path
from cogview_jax.runtime.random_key import random_key
from cogview_jax.runtime.sharding import sharded_shapes, unbox
from cogview_jax.sampling.options import SamplingSettings
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.text import TextTokenizer

T = TypeVar("T")

FILES = {"codec": "codec", "text": "text.model", "transformer": "transformer"}


class Bundle:
    """A bundle on disk. Parts are read, and checked against their hashes, when asked for."""

    def __init__(self, path: Path | str):
        """Opens the bundle at `path`.

        Raises:
            InputError: there is none, it is of another format, or its transformer was trained with
                another codec or text tokenizer than the bundle holds.
        """
        self.path = local_path(path, "bundle").absolute()
        self._described = read_description(self.path)
        self.description = self._described.raw
        self.parts: dict[str, dict] = self.description["parts"]

    def check_fit(self) -> None:
        """Refuses parts that do not fit each other, which were given together by mistake.

        Raises:
            InputError: they would sample together all the same: one line that names both.
        """
        check_fit(self._described, self.path)

    @property
    def step(self) -> int | None:
        """After how many steps the run that wrote the bundle did so; None if no run did."""
        return self._described.step

    @property
    def sampling(self) -> SamplingSettings | None:
        """How its transformer is best sampled, None where it has none."""
        transformer = self._described.transformer
        return None if transformer is None else transformer.sampling

    @property
    def weights(self) -> str | None:
        """Which weights of its run the bundle holds: "ema", "last", or None where it does not say.

        They are those of the transformer, or of the codec where there is no transformer.
        """
        trained = self._described.transformer or self._described.codec
        return trained.weights if trained else None

    def sha256(self, part: str) -> str:
        """The recorded hash of a part; InputError where the bundle lacks it."""
        if part not in self.parts:
            raise InputError(
                f"bundle {self.path} has no {part}; it has {', '.join(self.parts) or 'no part'}"
            )
        return self.parts[part]["sha256"]

    def text(self) -> TextTokenizer:
        """The text tokenizer; InputError where its pieces are not those that are described."""
        text = TextTokenizer.load(self.verified("text"))
        entry = self._described.text
        assert entry is not None, "`verified` has found the part"
        if entry.pieces not in (None, len(text)):
            raise InputError(
                f"bundle {self.path}: its text tokenizer has {len(text)} pieces, but bundle.json"
                f" says {entry.pieces}"
            )
        return text

    def official(self, part: str) -> dict[str, Any]:
        """What is recorded of the official file a part came from; empty where it came from none."""
        return getattr(self._described, part).official

    def codec_config(self) -> CodecConfig:
        """The sizes of the image tokenizer; InputError where the bundle lacks it."""
        self.sha256("codec")
        return self._codec_entry.config

    def codec(self, mesh: jax.sharding.Mesh | None = None) -> CodecPart:
        """The image tokenizer: on one device, or split over `mesh`."""
        path, boxed = self._stored_as("codec", self._codec_shapes)
        saved = self._restored("codec", path, sharded_shapes(boxed, mesh))
        return _codec_part(self._codec_entry, saved)

    def stored_codec(self) -> CodecPart:
        """The image tokenizer as it lies on disk: every array a `Deferred`, in its own type."""
        stored = self._tree("codec", self.verified("codec"))
        return _codec_part(self._codec_entry, stored)

    def transformer(
        self, mesh: jax.sharding.Mesh | None = None, dtype: Any = None
    ) -> TransformerPart:
        """The transformer: on one device, or split over `mesh`; as `dtype` if given."""
        path, part, shapes = self._transformer_to_read(mesh, dtype)
        return dataclasses.replace(part, params=self._restored("transformer", path, shapes))

    def described_transformer(self) -> TransformerPart:
        """The transformer without its parameters; InputError where the bundle lacks it."""
        self.sha256("transformer")
        return self._transformer_part({})

    def layered_transformer(
        self, mesh: jax.sharding.Mesh | None = None, dtype: Any = None, int8_kernels: bool = False
    ) -> TransformerPart:
        """What `transformer` gives, with its parameters only in the form of `unstack_arrays`.

        Array after array takes that form, so that there are never two of all. Kernels that lie in
        8 bits stay so, and others are rounded to 8 bits if `int8_kernels`; the types of the other
        parameters are then those of `models.quantization`.
        """
        quantized = self._quantized("transformer")
        arrays: Iterable[tuple[Sequence[str], Any]]
        if quantized:
            path, boxed = self._stored_as("transformer", self._transformer_shapes)
            shapes = sharded_shapes(quantized_shapes(boxed), mesh)
            part, arrays = self._transformer_part({}), restore_each(path, shapes)
        else:
            path, part, shapes = self._transformer_to_read(mesh, None if int8_kernels else dtype)
            if mesh is None:  # `unstack_arrays` puts them on the device
                shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), shapes)
            arrays = self._restored_each("transformer", path, shapes)
        if int8_kernels and not quantized:
            arrays = quantized_arrays(arrays)
        return dataclasses.replace(part, params=unstack_arrays(arrays))

    def _transformer_to_read(
        self, mesh: jax.sharding.Mesh | None, dtype: Any
    ) -> tuple[Path, TransformerPart, Any]:
        """Where the parameters lie, the rest, and what they are to be: shape, type, sharding."""
        path, boxed = self._stored_as("transformer", self._transformer_shapes)
        shapes = sharded_shapes(boxed, mesh)
        if dtype is not None:
            shapes = jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, dtype, sharding=s.sharding), shapes
            )
        return path, self._transformer_part({}), shapes

    def stored_transformer(self) -> TransformerPart:
        """The transformer as it lies on disk: every array a `Deferred`, in its own type.

        One with kernels in 8 bits is as if it lay in float32.
        """
        return self._transformer_part(self._tree("transformer", self.verified("transformer")))

    def stored_type(self, part: str) -> np.dtype:
        """The type in which the arrays of a part lie on disk, or its kernels if they are int8."""
        if self._quantized(part):
            return np.dtype(np.int8)
        return jax.tree.leaves(self._tree(part, self._place(part)))[0].dtype

    def _stored_as(self, part: str, described: Callable[[int], Any]) -> tuple[Path, Any]:
        """Where a part lies, and the shapes of `described`, once its arrays are known to have them.

        Nothing is allocated for sizes that the arrays on disk do not have.
        """
        path = self.verified(part)
        stored = sizes(self._tree(part, path))
        boxed = described(len(stored))
        check_shapes(path, stored, sizes(unbox(boxed)))
        return path, boxed

    @property
    def _codec_entry(self) -> CodecEntry:
        """What bundle.json says of the codec, once `verified` has found that there is one."""
        assert self._described.codec is not None
        return self._described.codec

    @property
    def _transformer_entry(self) -> TransformerEntry:
        """What bundle.json says of the transformer, once `verified` has found that there is one."""
        assert self._described.transformer is not None
        return self._described.transformer

    def _codec_shapes(self, arrays: int) -> Any:
        """The parameters of the codec as shapes."""
        config = self._codec_entry.config
        if config.depth > arrays:
            raise InputError(
                f"bundle {self.path}: {arrays} arrays are no codec of {config.depth} or more"
            )
        return codec_shapes(config)

    def _transformer_shapes(self, _: int) -> Any:
        """The parameters of the transformer as shapes."""
        entry = self._transformer_entry
        model = Transformer(
            entry.config,
            entry.vocabulary.size,
            entry.learned_positions,
            vocabulary=entry.vocabulary,
        )
        return transformer_shapes(model)

    def _transformer_part(self, params: Any) -> TransformerPart:
        """`params` with what bundle.json says of them."""
        return TransformerPart.described(self._transformer_entry, params)

    def _place(self, part: str) -> Path:
        """Where a part lies, and whether or not it is there."""
        return self.path / FILES[part]

    def _tree(self, part: str, path: Path) -> dict[str, Any]:
        """The arrays of a part at `path`, each a `Deferred`."""
        tree = stored_tree(path)
        return dequantized_tree(tree, str(path)) if self._quantized(part) else tree

    def _quantized(self, part: str) -> bool:
        """Whether the kernels of a part are in 8 bits."""
        entry = self._described.transformer
        return part == "transformer" and entry is not None and entry.kernels == "int8"

    def _restored(self, part: str, path: Path, shapes: Mapping[str, Any]) -> Any:
        """The arrays of a part at `path`, as `restore_tree` gives them."""
        if self._quantized(part):
            return nested(self._restored_each(part, path, shapes))
        return restore_tree(path, shapes)

    def _restored_each(
        self, part: str, path: Path, shapes: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        """The arrays of a part at `path`, as `restore_each` gives them."""
        if self._quantized(part):
            return placed(self._tree(part, path), shapes)
        return restore_each(path, shapes)

    def verified(self, part: str) -> Path:
        """Where a part lies, once its files have the recorded hash; InputError if they do not."""
        recorded, path = self.sha256(part), self._place(part)
        if not path.exists():
            raise InputError(f"bundle {self.path} lacks {path.name}, which bundle.json lists")
        inside(self.path, path.name)
        check_tree(path)
        if not (path.is_file() if part == "text" else path.is_dir()):
            raise InputError(f"bundle {self.path}: {path.name} is no {part}")
        found = retried(lambda: part_sha256(path), str(path))
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
    """What names the contents of the bundle or the checkpoint at `path`.

    It is the sha256 of the file that holds the hash of every part, bundle.json or the manifest, or
    of an adapter, which names its base by its hash.
    """
    names = ("bundle.json", MANIFEST, "adapter_model.safetensors")
    return sha256_file(next(file for file in map(Path(path).joinpath, names) if file.exists()))


def codec_shapes(config: CodecConfig) -> dict[str, Any]:
    """The "params" and "codebook" of an image tokenizer as `transformer_shapes` has them."""
    # Parameters do not depend on the size of the images.
    side = config.downsampling
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), "float32")
    boxed = jax.eval_shape(lambda x: config.module().init(random_key(0), x), pixels)["params"]
    own, state = jax.eval_shape(
        lambda: config.quantiser.init(random_key(0), config.codebook, config.code_width)
    )
    return {
        "params": boxed | ({"quantiser": own} if own else {}),
        "codebook": state._asdict(),
    }


def _codec_part(entry: CodecEntry, saved: Any) -> CodecPart:
    """The part of a tree like that of `codec_shapes`."""
    codebook = entry.config.quantiser.State(**saved["codebook"])
    return CodecPart(entry.config, saved["params"], codebook, entry.weights)


def part_sha256(path: Path) -> str:
    """The hash of a part, a folder or a file, as bundle.json records it."""
    return sha256_tree(path) if path.is_dir() else sha256_file(path)
