"""Statistics of reference images as `.npz` files, so that features are extracted once.

A file holds `mu` [d] and `sigma` [d, d] in float64, as those of pytorch-fid and clean-fid do, which
can therefore be read too and can read ours; besides, `n`, the number of images, and `provenance`,
JSON that says what was computed of what. KID needs the features themselves; a file may hold them as
`feats` [n, d], as clean-fid's files for KID do. Nothing is unpickled.

Legend: n images, d numbers per image.
"""

import errno
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float, Float64
from numpy.lib import format as npy

from cogview_jax.evaluation.metrics.features import check_features
from cogview_jax.evaluation.metrics.moments import Moments
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import write_file

#: The most bytes of an array that is read: a covariance of 16,384 dimensions, or 250,000 features
#: of 2,048.
MOST_BYTES = 2 << 30
#: The most bytes of a provenance.
MOST_TEXT = 1 << 20
#: A covariance may differ from its transpose by this share of its largest entry: that of float32.
ASYMMETRY = 1e-5


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from: all that moves the number, and what the images are.

    Attributes:
        network: the feature network's name.
        sha256: of the file of its weights.
        resize: name of the protocol that brings images to the network's size and range.
        blur: radius k of FID-k.
        blur_kernel: its name in `blur.KERNELS`; empty where the radius is 0.
        images: what they are, for people: a folder, a data set and its split.
    """

    network: str
    sha256: str
    resize: str
    blur: int = 0
    blur_kernel: str = ""
    images: str = ""

    def protocol(self, *, blur: bool = True) -> str:
        """Everything that two sides of a distance must share, as words; `blur` is part of it."""
        words = f"{self.network} (sha256 {self.sha256[:12] or 'unknown'}), resize {self.resize}"
        if not blur:
            return words
        return f"{words}, blur {self.blur}{f' ({self.blur_kernel})' if self.blur else ''}"


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Moments of the features of images, and where they come from.

    Attributes:
        mean: of the features [d].
        covariance: with n - 1 in the denominator [d, d].
        count: number of images; None if the file does not say.
        provenance: None if the file does not say.
        features: all of them [n, d], or None.
    """

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]
    count: int | None = None
    provenance: Provenance | None = None
    features: Float[np.ndarray, "n d"] | None = None

    @classmethod
    def of(
        cls,
        moments: Moments,
        provenance: Provenance | None = None,
        features: Float[np.ndarray, "n d"] | None = None,
    ) -> "ReferenceStatistics":
        """Statistics of at least two images, from their moments."""
        return cls(moments.mean, moments.covariance, moments.count, provenance, features)


def check_comparable(
    first: tuple[str, Provenance | None],
    second: tuple[str, Provenance | None],
    *,
    blur: bool = True,
) -> None:
    """Raises InputError if two sides come from another network, other weights or another protocol.

    The message names both sides. A provenance that is not known is compared with nothing.

    Args:
        first: a name for messages, such as the file, and the provenance of one side.
        second: those of the other side.
        blur: whether both must have the same blur; FID-k may also blur one side alone.
    """
    (name, one), (other_name, other) = first, second
    if one is None or other is None:
        return
    needed = {"network", "sha256", "resize", *(("blur", "blur_kernel") if blur else ())}
    if any(getattr(one, field) != getattr(other, field) for field in needed):
        raise InputError(
            "statistics that cannot be compared: "
            f"{name} has {one.protocol(blur=blur)}; {other_name} has {other.protocol(blur=blur)}"
        )


def write_statistics(path: str | Path, statistics: ReferenceStatistics) -> None:
    """Writes a `.npz` file, atomically.

    Raises:
        InputError: the name does not end in .npz, or is that of a folder.
    """
    if Path(path).suffix != ".npz":
        raise InputError(f"statistics file {path}: expected a name that ends in .npz")
    arrays: dict[str, Any] = {"mu": statistics.mean, "sigma": statistics.covariance}
    if statistics.count is not None:
        arrays["n"] = np.asarray(statistics.count, np.int64)
    if statistics.provenance is not None:
        arrays["provenance"] = np.asarray(json.dumps(asdict(statistics.provenance)))
    if statistics.features is not None:
        arrays["feats"] = statistics.features

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)

    write_file(path, write)


def read_statistics(path: str | Path) -> ReferenceStatistics:
    """Reads a file of `write_statistics`, pytorch-fid or clean-fid.

    Where a file holds features without `mu` and `sigma`, their moments are computed.

    Raises:
        InputError: the file is no such file, is damaged, holds Python objects, or its numbers are
            not those of a mean and a covariance; one line that names it.
        OSError: it is not there, or cannot be read.
    """
    return retried(lambda: _read(Path(path)), str(path))


def _read(path: Path) -> ReferenceStatistics:
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise InputError(f"{path}: expected a .npz file of statistics, but this is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _statistics(path, dict(_members(path, archive)))
    except OSError as error:
        if error.errno != errno.EINVAL:  # a damaged table of contents names a place before the file
            raise
        damage = "it names a place outside the file"
    # The last two mean a compression that Python does not know, and encryption.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        damage = " ".join(str(error).split())
    raise InputError(f"{path}: not readable as a .npz file of statistics ({damage})")


@dataclass(frozen=True)
class _Member:
    """An array of the archive, of which only the header has been read."""

    path: Path
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def name(self) -> str:
        return self.info.filename.removesuffix(".npy")

    def read(self) -> np.ndarray:
        """The array, whose stated size is that of its bytes and within the bound."""
        with self.archive.open(self.info) as file:
            try:
                return npy.read_array(file, allow_pickle=False)
            except ValueError as error:
                raise InputError(f"{self.path}: damaged: {self.name} ({error})") from None


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, _Member]]:
    for info in archive.infolist():
        if info.filename not in ("mu.npy", "sigma.npy", "n.npy", "provenance.npy", "feats.npy"):
            continue
        with archive.open(info) as file:
            try:
                shape, dtype = _header(file)
            except ValueError as error:
                raise InputError(f"{path}: {info.filename} is no array ({error})") from None
            start = file.tell()
        member = _Member(path, archive, info, shape, dtype)
        if dtype.hasobject:
            raise InputError(f"{path}: {member.name} holds Python objects, which are not read")
        size = int(np.prod([*map(int, shape), dtype.itemsize], dtype=object))
        if size + start != info.file_size:
            raise InputError(
                f"{path}: damaged: {member.name} {list(shape)} needs {size} bytes, but has"
                f" {info.file_size - start}"
            )
        most = MOST_TEXT if member.name in ("n", "provenance") else MOST_BYTES
        if size > most:
            raise InputError(f"{path}: {member.name}: {size} bytes, expected at most {most}")
        yield member.name, member


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"format {version[0]}.{version[1]}")
    return shape, dtype


def _statistics(path: Path, members: Mapping[str, _Member]) -> ReferenceStatistics:
    features = provenance = count = None
    if "provenance" in members:
        provenance = _provenance(path, members["provenance"].read())
    if "feats" in members:
        features = check_features(_numbers(members["feats"], 2).read(), f"{path}: feats", least=2)
    if "mu" not in members and "sigma" not in members and features is not None:
        return ReferenceStatistics.of(Moments.of(features), provenance, features)
    if missing := {"mu", "sigma"} - set(members):
        names = ", ".join(sorted(missing))
        raise InputError(f"{path}: no {names} in it: expected mu and sigma, or feats")
    d = _numbers(members["mu"], 1).shape[0]
    if _numbers(members["sigma"], 2).shape != (d, d):
        shape = list(members["sigma"].shape)
        raise InputError(f"{path}: sigma {shape} with mu [{d}]: expected sigma [{d}, {d}]")
    mean, covariance = (np.asarray(members[name].read(), np.float64) for name in ("mu", "sigma"))
    for name, values in (("mu", mean), ("sigma", covariance)):
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} has NaN or infinity")
    largest = np.abs(covariance).max(initial=0)
    if np.abs(covariance - covariance.T).max(initial=0) > ASYMMETRY * largest:
        raise InputError(f"{path}: sigma is not symmetric, so it is no covariance")
    if np.diagonal(covariance).min(initial=0) < 0:
        raise InputError(f"{path}: sigma has a negative variance, so it is no covariance")
    if "n" in members:
        count = _count(path, members["n"].read())
    elif features is not None:
        count = len(features)
    return ReferenceStatistics(mean, covariance, count, provenance, features)


def _numbers(member: _Member, dimensions: int) -> _Member:
    """The member, if it is an array of floats with so many axes."""
    if member.dtype.kind != "f" or len(member.shape) != dimensions or 0 in member.shape:
        form = "[d]" if dimensions == 1 else "[d, d]" if member.name == "sigma" else "[n, d]"
        raise InputError(
            f"{member.path}: {member.name} is {member.dtype} {list(member.shape)}: expected floats"
            f" {form}"
        )
    return member


def _count(path: Path, value: np.ndarray) -> int:
    if value.shape != () or value.dtype.kind not in "iu" or value < 2:
        raise InputError(f"{path}: n is {value.dtype} {value}: expected a whole number from 2")
    return int(value)


def _provenance(path: Path, value: np.ndarray) -> Provenance:
    try:
        given: Any = json.loads(str(value))
        wanted = {field.name: field.type for field in fields(Provenance)}
        if given.keys() != wanted.keys():
            raise ValueError(f"expected {', '.join(wanted)}")
        for name, kind in wanted.items():
            if type(given[name]) is not kind:
                raise ValueError(f"{name} is {given[name]!r}")
        return Provenance(**given)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: provenance is not readable ({error})") from None
