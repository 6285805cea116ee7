"""Hand-made files of Fashion-MNIST, a few pictures each, as the package has them."""

import gzip

import numpy as np


def pictures(labels, seed=0):
    """Bars, uint8 [n, 28, 28], light on black as in the set: a place of its own for each label."""
    rng, made = np.random.default_rng(seed), np.zeros((len(labels), 28, 28), np.uint8)
    for number, label in enumerate(labels):
        top, left = divmod(int(label), 5)
        height, width = 4 + 8 * rng.integers(2), 3 + rng.integers(3)
        rows, columns = slice(14 * top, 14 * top + height), slice(5 * left, 5 * left + width)
        made[number, rows, columns] = rng.choice((60, 160, 250))
    return made


def idx(values):
    """The bytes of an idx file."""
    sizes = np.array(values.shape, ">u4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def write_files(folder, train=30, test=20):
    """Writes the four files; labels go through the classes in turn. Returns the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, count in {"train": train, "t10k": test}.items():
        labels = (np.arange(count) % 10).astype(np.uint8)
        found[name] = pictures(labels, count)
        for kind, values in {"images-idx3": found[name], "labels-idx1": labels}.items():
            data = gzip.compress(idx(values), 1)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(data)
    return found
