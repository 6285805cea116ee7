"""A bundle whose transformer is that of another, its base, with a low-rank adapter merged."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cogview_jax.checkpoints.adapted import merged_on_host, with_positions
from cogview_jax.checkpoints.adapter import WEIGHTS, read_adapter, stacked
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.checkpoints.description import FORMAT, described
from cogview_jax.checkpoints.stored_tree import check_shapes, nested, placed, sizes
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file
from cogview_jax.runtime.sharding import unbox


class AdaptedBundle(Bundle):
    """A base's parts, but for the transformer, which is merged when it is read."""

    def __init__(self, folder: Path, base: Bundle):
        """Puts the adapter in `folder` on `base`.

        Raises:
            InputError: the adapter is none, or of another base, or its arrays are not those of the
                layers of its base.
        """
        self.path, self.base, self._found = folder, base, read_adapter(folder)
        if (there := base.sha256("transformer")) != self._found.base:
            raise InputError(
                f"the adapter {folder} was trained on transformer {self._found.base[:12]}, but the"
                f" bundle {base.path} holds transformer {there[:12]}"
            )
        both = f"{there}\n{sha256_file(folder / WEIGHTS)}\n"
        entry = self._part.entry(self._found.entry.learned_positions) | {
            "trained_with": base.parts["transformer"].get("trained_with", {}),
            "sha256": hashlib.sha256(both.encode()).hexdigest(),
        }
        self.parts = base.parts | {"transformer": entry}
        self.description = {"format": FORMAT, "step": self._found.step, "parts": self.parts}
        self._described = described(self.description, folder)

    def verified(self, part: str) -> Path:
        """Where a part of the base lies, once its files have the recorded hash."""
        return self.base.verified(part)

    @property
    def _part(self) -> TransformerPart:
        """The merged transformer, without its parameters."""
        return TransformerPart.described(self._found.entry, {})

    def _place(self, part: str) -> Path:
        return self.base._place(part)

    def _tree(self, part: str, path: Path) -> dict[str, Any]:
        tree = self.base._tree(part, path)
        if part != "transformer":
            return tree
        entry, file = self._found.entry, self.path / WEIGHTS
        model = Transformer(entry.config, entry.vocabulary.size, entry.learned_positions)
        tree = with_positions(tree, entry.learned_positions)
        if sizes(tree) != sizes(unbox(transformer_shapes(model))):
            raise InputError(f"{file} describes another model than the bundle {self.base.path}")
        return merged_on_host(tree, stacked(self._found, tree, str(file)), self._found.lora)

    def _restored(self, part: str, path: Path, shapes: Mapping[str, Any]) -> Any:
        if part != "transformer":
            return self.base._restored(part, path, shapes)
        return nested(self._restored_each(part, path, shapes))

    def _restored_each(
        self, part: str, path: Path, shapes: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        if part != "transformer":
            yield from self.base._restored_each(part, path, shapes)
            return
        tree = self._tree(part, path)
        check_shapes(path, sizes(tree), sizes(shapes))
        yield from placed(tree, shapes)
