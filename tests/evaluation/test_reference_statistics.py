"""Files of statistics: our own, pytorch-fid's and clean-fid's, and those that are damaged."""

import json
import os
import zipfile

import numpy as np
import pytest

from cogview_jax.evaluation.metrics.frechet import frechet_distance
from cogview_jax.evaluation.metrics.moments import Moments
from cogview_jax.evaluation.reference_statistics import (
    Provenance,
    ReferenceStatistics,
    check_comparable,
    read_statistics,
    write_statistics,
)
from cogview_jax.runtime.errors import InputError

FEATURES = np.random.default_rng(0).random((30, 5)).astype(np.float32)
MU, SIGMA = FEATURES.astype(np.float64).mean(axis=0), np.cov(FEATURES, rowvar=False)
INCEPTION = Provenance("inception", "ab" * 32, "clean", images="a folder")


@pytest.mark.parametrize("provenance", [INCEPTION, None])
@pytest.mark.parametrize("features", [FEATURES, None])
def test_round_trip(tmp_path, provenance, features):
    path = tmp_path / "new" / "real.npz"
    written = ReferenceStatistics.of(Moments.of(FEATURES), provenance, features)
    write_statistics(path, written)
    read = read_statistics(path)
    assert (read.count, read.provenance) == (30, provenance)
    np.testing.assert_array_equal(read.mean, written.mean)
    np.testing.assert_array_equal(read.covariance, written.covariance)
    assert (read.features is None) == (features is None)
    if features is not None:
        np.testing.assert_array_equal(read.features, features)
    assert frechet_distance(read, Moments.of(FEATURES)).value < 1e-9
    assert os.listdir(path.parent) == ["real.npz"]


def test_ours_are_in_the_layout_of_pytorch_fid(tmp_path):
    write_statistics(tmp_path / "a.npz", ReferenceStatistics.of(Moments.of(FEATURES), INCEPTION))
    with np.load(tmp_path / "a.npz") as file:  # without pickles
        np.testing.assert_allclose(file["mu"], MU, rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], SIGMA, rtol=1e-6)
        assert file["n"] == 30
        assert json.loads(str(file["provenance"]))["resize"] == "clean"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_others(tmp_path, save):
    save(tmp_path / "fid.npz", mu=MU, sigma=SIGMA)
    read = read_statistics(tmp_path / "fid.npz")
    assert (read.count, read.provenance, read.features) == (None, None, None)
    np.testing.assert_array_equal(read.covariance, SIGMA)
    assert frechet_distance(read, read).n == (None, None)
    save(tmp_path / "kid.npz", feats=FEATURES)
    read = read_statistics(tmp_path / "kid.npz")
    assert (read.count, read.provenance) == (30, None)
    np.testing.assert_array_equal(read.features, FEATURES)
    np.testing.assert_allclose(read.mean, MU, rtol=1e-12)
    np.testing.assert_allclose(read.covariance, SIGMA, rtol=1e-6)


ASYMMETRIC = SIGMA + np.diag([0.01] * 4, 1)
NAN = np.where(np.eye(5, k=2) + np.eye(5, k=-2) > 0, np.nan, SIGMA)
TEXT = json.dumps({"network": "inception"})


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({}, "no mu, sigma in it: expected mu and sigma, or feats"),
        ({"mu": MU}, "no sigma in it"),
        ({"mu": MU, "sigma": SIGMA[:4]}, r"sigma \[4, 5\] with mu \[5\]: expected sigma \[5, 5\]"),
        ({"mu": MU[None], "sigma": SIGMA}, r"mu is float64 \[1, 5\]: expected floats \[d\]"),
        ({"mu": MU, "sigma": MU}, r"sigma is float64 \[5\]: expected floats \[d, d\]"),
        ({"mu": np.arange(5), "sigma": SIGMA}, r"mu is int64 \[5\]: expected floats"),
        ({"mu": MU, "sigma": NAN}, "sigma has NaN or infinity"),
        ({"mu": MU * np.inf, "sigma": SIGMA}, "mu has NaN or infinity"),
        ({"mu": MU, "sigma": ASYMMETRIC}, "sigma is not symmetric"),
        ({"mu": MU, "sigma": -SIGMA}, "sigma has a negative variance"),
        ({"mu": MU.astype(object), "sigma": SIGMA}, "mu holds Python objects"),
        ({"feats": MU}, r"feats is float64 \[5\]: expected floats \[n, d\]"),
        ({"feats": FEATURES[:1]}, "feats: 1 images, expected at least 2"),
        ({"mu": MU, "sigma": SIGMA, "n": np.float64(3)}, "n is float64 3.0: expected a whole"),
        ({"mu": MU, "sigma": SIGMA, "n": 1}, "n is int64 1: expected a whole number from 2"),
        ({"mu": MU, "sigma": SIGMA, "provenance": "x"}, "provenance is not readable"),
        ({"mu": MU, "sigma": SIGMA, "provenance": TEXT}, "provenance is not readable"),
    ],
)
def test_wrong_arrays(tmp_path, arrays, line):
    path = tmp_path / "real.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=line) as caught:
        read_statistics(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "real.npz"
    for data in (b"", b"words", b"PK\x03\x04"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"real\.npz: not readable as a \.npz file"):
            read_statistics(path)
    np.save(tmp_path / "one.npy", SIGMA)
    with pytest.raises(InputError, match=r"not readable as a \.npz file"):
        read_statistics(tmp_path / "one.npy")
    with pytest.raises(InputError, match="this is no file"):
        read_statistics(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_statistics(tmp_path / "absent.npz")
    with pytest.raises(InputError, match=r"expected a name that ends in \.npz"):
        write_statistics(tmp_path / "real", ReferenceStatistics.of(Moments.of(FEATURES)))


def test_damaged_bytes_are_found(tmp_path):
    path = tmp_path / "real.npz"
    np.savez(path, mu=MU, sigma=SIGMA)
    data = bytearray(path.read_bytes())
    data[data.index(SIGMA.tobytes()) + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="Bad CRC-32"):
        read_statistics(path)


def test_any_damage_is_one_line(tmp_path):
    """Bytes anywhere are replaced, in the table of contents of the archive too."""
    path, rng, lines = tmp_path / "real.npz", np.random.default_rng(1), []
    write_statistics(path, ReferenceStatistics.of(Moments.of(FEATURES), INCEPTION))
    data = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(100):
        damaged = data.copy()
        damaged[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        try:
            read_statistics(path)  # some bytes mean nothing
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > 70
    assert not any("\n" in line for line in lines)


def test_a_table_of_contents_that_names_a_place_before_the_file(tmp_path):
    path = tmp_path / "real.npz"
    np.savez(path, mu=MU, sigma=SIGMA)
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")  # at 16: where the table begins; it moves every other place
    data[end + 16 : end + 20] = (int.from_bytes(data[end + 16 : end + 20], "little") + 99).to_bytes(
        4, "little"
    )
    path.write_bytes(data)
    with pytest.raises(InputError, match="names a place outside the file"):
        read_statistics(path)


def test_stated_sizes_are_checked_before_memory_is_used(tmp_path):
    path = tmp_path / "real.npz"
    np.savez(path, mu=MU, sigma=SIGMA)
    for shape in ("(100000, 100000)", "(5, 4)"):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
        header = header.ljust(117) + "\n"
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
        forged = tmp_path / "forged.npz"
        with zipfile.ZipFile(forged, "w") as archive:
            archive.writestr("mu.npy", members["mu.npy"])
            archive.writestr("sigma.npy", start + SIGMA.tobytes())
        with pytest.raises(InputError, match=r"damaged: sigma .* needs \d+ bytes, but has 200"):
            read_statistics(forged)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Provenance("inception", "cd" * 32, "clean"), r"sha256 abababababab.*sha256 cdcdcdcd"),
        (Provenance("inception", "ab" * 32, "tf1"), r"resize clean.*resize tf1"),
        (
            Provenance("vgg16", "ab" * 32, "clean"),
            r"real\.npz has inception .* generated has vgg16",
        ),
        (Provenance("inception", "ab" * 32, "clean", 2, "pil"), r"blur 0.*blur 2 \(pil\)"),
    ],
)
def test_another_network_or_protocol_is_named(other, words):
    with pytest.raises(InputError, match=words):
        check_comparable(("real.npz", INCEPTION), ("generated", other))


def test_what_can_be_compared():
    same = Provenance("inception", "ab" * 32, "clean", images="another folder")
    blurred = Provenance("inception", "ab" * 32, "clean", 2, "pil")
    check_comparable(("a", INCEPTION), ("b", same))
    check_comparable(("a", INCEPTION), ("b", None))
    check_comparable(("a", INCEPTION), ("b", blurred), blur=False)
