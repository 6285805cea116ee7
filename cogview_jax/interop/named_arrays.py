"""Named arrays of other people's files, checked as they are taken."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cogview_jax.interop.torch_format.tensor import Tensor
from cogview_jax.runtime.errors import InputError

#: So many names of a kind are listed in a complaint.
LISTED = 3
#: The types weights may have.
TYPES = tuple(map(np.dtype, ("float16", ml_dtypes.bfloat16, "float32", "float64")))
#: The order of axes in a file of a kernel [taps, taps, channels in, channels out].
OIHW, HWIO = (3, 2, 0, 1), (0, 1, 2, 3)


class Arrays(NamedTuple):
    """Named arrays of a file: `Tensor`s or numpy arrays, kernels with their axes in order `axes`.

    where: the file, for complaints.
    """

    state: Mapping[str, Any]
    axes: tuple[int, int, int, int]
    where: str

    def check_names(self, names: Sequence[str]) -> None:
        """InputError unless the file has each of the names, and no other."""
        missing = [name for name in names if name not in self.state]
        unknown = [name for name in self.state if name not in names]
        if missing or unknown:
            said = [f"lacks {listed(missing)}"] * bool(missing)
            said += [f"has {listed(unknown)}, which no rule knows"] * bool(unknown)
            raise InputError(f"{self.where} {' and '.join(said)}")

    def outputs(self, name: str) -> int:
        """The output channels of a kernel, at least 1."""
        return self._size(name, self.axes.index(3))

    def inputs(self, name: str) -> int:
        """The input channels of a kernel, at least 1."""
        return self._size(name, self.axes.index(2))

    def _size(self, name: str, axis: int) -> int:
        shape = np.shape(self.state[name])
        if len(shape) != 4 or not min(shape):
            raise InputError(
                f"{self.where}: {name} has shape {list(shape)}, expected the four axes of a kernel"
            )
        return shape[axis]

    def kernel(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The kernel of that shape, [taps, taps, channels in, channels out], float32."""
        array = self.get(name, tuple(shape[axis] for axis in self.axes))
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array of that shape in the file: float32, or as it is where it counts something."""
        array = self.state[name]
        if not isinstance(array, Tensor | np.ndarray):
            raise InputError(f"{self.where}: {name} is no array")
        if tuple(array.shape) != shape:
            raise InputError(
                f"{self.where}: {name} has shape {list(array.shape)}, expected {list(shape)}"
            )
        values = array.read() if isinstance(array, Tensor) else array
        if shape == () and values.dtype.kind in "iu":
            return values
        if values.dtype not in TYPES:
            raise InputError(
                f"{self.where}: {name} is {values.dtype}, expected one of"
                f" {', '.join(map(str, TYPES))}"
            )
        return np.array(values, np.float32)


def state_dict(tree: Any, where: str) -> dict[str, Any]:
    """The state dict in what a torch file holds, below the key of a checkpoint if it has one.

    Raises:
        InputError: there is none.
    """
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise InputError(f"{where} holds no state dict")
    return tree


def below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries below a prefix, without it; all of them where none has it."""
    found = {
        name.removeprefix(prefix): entry for name, entry in state.items() if name.startswith(prefix)
    }
    return found or dict(state)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are, in one line."""
    shown = [" ".join(name.split())[:80] for name in names[:LISTED]]
    more = f" and {len(names) - LISTED} more" * (len(names) > LISTED)
    return ", ".join(shown) + more
