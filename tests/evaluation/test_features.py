"""Features of images against pytorch-fid, torch-fidelity, clean-fid and CogView's evaluation."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from cogview_jax.evaluation.feature_networks import FEATURE_NETWORKS, OpenNetwork, listed_features
from cogview_jax.evaluation.features import FeatureExtractor
from cogview_jax.evaluation.resize import RESIZES
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file
from random_networks import efficientnet_state, inception_state, write_state

#: protocol -> the package whose numbers it must give, and its logits.
PACKAGES = {
    "clean": ("clean_fid", "logits"),
    "legacy_pytorch": ("pytorch_fid", "logits"),
    "tf1": ("torch_fidelity", "logits_unbiased"),
}
#: Of each set, so many images.
OF_A_SET = 4


@pytest.fixture(scope="module")
def inception(oracles, tmp_path_factory):
    """A file of Inception's weights by the rule."""
    return write_state(
        tmp_path_factory.mktemp("weights") / "inception.pth", inception_state(oracles)
    )


@pytest.fixture(scope="module")
def pictures(oracles):
    """The oracles' pictures, of different sizes."""
    count = len(np.load(oracles("inception/features.npz"))["pytorch_fid:2048"])
    files = [oracles(f"inception/{i:02d}.png") for i in range(count)]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


@pytest.fixture(scope="module")
def of_a_set(oracles):
    """The first images of set a."""
    return list(np.load(oracles("sets/images.npz"))["a"][:OF_A_SET])


@pytest.fixture(scope="module")
def small(fixtures_root, tmp_path_factory):
    """A file of EfficientNet's weights by the rule."""
    path = tmp_path_factory.mktemp("weights") / "efficientnet.pth"
    return write_state(path, efficientnet_state(fixtures_root))


def joined(batches):
    """Batches of features as two arrays."""
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def near(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ---- against others


@pytest.mark.parametrize("resize", sorted(PACKAGES))
def test_inception_as_the_package(oracles, inception, pictures, of_a_set, resize):
    package, logits_name = PACKAGES[resize]
    extractor = FeatureExtractor("inception", inception, resize=resize, batch_size=8)
    pooled, logits = joined(extractor(pictures + of_a_set))
    count = len(pictures)
    expected = np.load(oracles("inception/features.npz"))
    near(pooled[:count], expected[f"{package}:2048"], 5e-5)
    near(logits[:count], expected[f"{package}:{logits_name}"], 5e-4)
    expected = np.load(oracles("sets/features.npz"))
    near(pooled[count:], expected[f"{package}:a_first8"][:OF_A_SET], 5e-5)
    if resize == "tf1":
        expected_logits = expected["torch_fidelity:a_first8_logits_unbiased"][:OF_A_SET]
        near(logits[count:], expected_logits, 5e-4)


def test_the_releases_own_evaluation(oracles, tmp_path, pictures, of_a_set):
    path = write_state(tmp_path / "torchvision.pth", inception_state(oracles, classes=1000))
    extractor = FeatureExtractor("inception", path, resize="release", batch_size=8)
    pooled, logits = joined(extractor(pictures[-6:] + of_a_set[:2]))
    expected = np.load(oracles("cogview_eval/features.npz"))
    near(pooled[:6], expected["pictures:2048"][-6:], 5e-5)
    near(pooled[6:], expected["a_first8"][:2], 5e-5)
    assert logits.shape == (8, 1000)
    with pytest.raises(InputError, match="torchvision's Inception v3, which"):
        FeatureExtractor("inception", path, resize="tf1")


def test_efficientnet_as_another_implementation(fixtures_root, small):
    expected = np.load(fixtures_root / "efficientnet_lite0" / "features.npz")
    squares = np.random.default_rng(7).integers(0, 256, (2, 28, 28, 3), np.uint8)
    extractor = FeatureExtractor("efficientnet_lite0", small, resize="tf1", batch_size=1)
    pooled, logits = joined(extractor(squares.repeat(8, 1).repeat(8, 2)))
    near(pooled, expected["rule:features"], 1e-5)
    near(logits, expected["rule:logits"], 1e-5)


# ---- batches


class Mean:
    """A network whose one feature of an image is the mean of its red values."""

    @staticmethod
    def features(weights, x):
        return x[:, :, :, 0].mean(axis=(1, 2))[:, None] * weights

    @staticmethod
    def logits(weights, pooled):
        return -pooled


@pytest.fixture
def mean_extractor(monkeypatch, small):
    """An extractor of batches of 8 that gives the mean red value, without a real network."""
    entry = FEATURE_NETWORKS["efficientnet_lite0"]

    def opened(path, resize):
        return OpenNetwork(np.float32(128), Mean.features, Mean.logits)

    changed = {"mean": entry.__class__(**{**vars(entry), "pixels": 4, "open": opened})}
    monkeypatch.setattr("cogview_jax.evaluation.features.FEATURE_NETWORKS", changed)
    return FeatureExtractor("mean", small, resize="tf1", batch_size=5)


def plain(value):
    """A picture of one colour; its size depends on the value."""
    return np.full((1 + value % 3, 2 + value % 5, 3), value, np.uint8)


def test_order_sizes_and_a_part_of_a_batch(mean_extractor):
    assert mean_extractor.batch_size == 8  # 5, on eight devices
    for count in (0, 1, 8, 21):
        batches = list(mean_extractor(plain(value) for value in range(count)))
        assert [len(batch.pooled) for batch in batches] == [8] * (count // 8) + [count % 8] * (
            count % 8 > 0
        )
        if count:
            pooled, logits = joined(batches)
            np.testing.assert_allclose(pooled[:, 0], np.arange(count) - 127, atol=1e-4)
            np.testing.assert_array_equal(logits, -pooled)


def test_images_are_taken_as_batches_are_asked_for(mean_extractor):
    taken = itertools.count()
    features = mean_extractor(plain(next(taken) % 256) for _ in range(10_000))
    for _ in range(3):
        next(features)
    features.close()
    assert next(taken) <= 8 * (3 + 4)
    names = [thread.name for thread in threading.enumerate()]
    assert "prefetch" not in names


def test_an_error_of_the_images_is_raised(mean_extractor):
    def failing():
        yield from map(plain, range(9))
        raise InputError("no such image")

    features = mean_extractor(failing())
    with pytest.raises(InputError, match="no such image"):
        list(features)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4), np.uint8), r"image 3 is uint8 \[4, 4\], expected uint8 \[h, w, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
    ],
)
def test_what_is_no_image(mean_extractor, image, words):
    with pytest.raises(InputError, match=words):
        list(mean_extractor([plain(1), plain(2), plain(3), image]))


# ---- what there is


def test_settings_that_do_not_exist(small):
    with pytest.raises(InputError, match="features of 'resnet': choices are inception, efficient"):
        FeatureExtractor("resnet", small)
    with pytest.raises(
        InputError,
        match="'release' for efficientnet_lite0: choices are clean, legacy_pytorch, tf1",
    ):
        FeatureExtractor("efficientnet_lite0", small, resize="release")
    with pytest.raises(InputError, match="batch_size 0"):
        FeatureExtractor("efficientnet_lite0", small, batch_size=0)
    with pytest.raises(InputError, match="holds weights of EfficientNet-Lite0, expected Inception"):
        FeatureExtractor("inception", small)


def test_description(small):
    extractor = FeatureExtractor("efficientnet_lite0", small)
    assert extractor.describe() == {"name": "efficientnet_lite0", "sha256": sha256_file(small)}
    assert (extractor.dimension, extractor.resize) == (1280, "clean")


def test_the_list_is_complete_and_needs_no_jax(root):
    text = listed_features()
    assert [name for name in (*FEATURE_NETWORKS, *RESIZES) if name not in text] == []
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from cogview_jax.evaluation.feature_networks import listed_features\n"
        "print(listed_features())"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True)
    assert printed.stdout.strip() == text
