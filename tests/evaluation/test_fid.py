"""FID, KID and the inception score through `evaluate`, with real networks of random weights."""

import json
import shutil

import numpy as np
import pytest
import scipy.linalg
from PIL import Image, ImageFilter

from cogview_jax.evaluation.benchmark import ImageOptions, Options, load_benchmark
from cogview_jax.evaluation.features import FeatureExtractor
from cogview_jax.evaluation.metrics.frechet import fid_infinity
from cogview_jax.evaluation.metrics.moments import Moments
from cogview_jax.evaluation.report import evaluate
from cogview_jax.evaluation.set_distances import LEAST_FOR_INFINITY
from cogview_jax.runtime.errors import InputError
from cogview_jax.shapes.fresh import fresh_scenes
from processes import Processes
from random_networks import inception_state, write_state
from tiny_features import offer, write_weights

SIZE = 32


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A file of weights of a small network."""
    offer(monkeypatch)
    return write_weights(tmp_path / "tiny.npz")


def save(folder, images):
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """12 drawings, and 10 others."""
    root = tmp_path_factory.mktemp("sets")
    splits = list(fresh_scenes(12, 0))
    first, second = splits[0].drawings(SIZE), splits[1].drawings(SIZE)[:10]
    return save(root / "real", first), save(root / "generated", second)


def compared(out, real, generated, network, name="tiny", **asked):
    images = ImageOptions(real=real, generated=generated, features={name: str(network)}, **asked)
    evaluate(load_benchmark("fid"), None, str(out), Options(batch_size=8, images=images))
    return json.loads(out.read_text())


def test_the_sets_of_the_oracles(oracles, tmp_path):
    """torch-fidelity's numbers; its inception score is of set a."""
    sets = np.load(oracles("sets/images.npz"))
    expected = json.loads(oracles("sets/metrics.json").read_text())
    path = write_state(tmp_path / "inception.pth", inception_state(oracles))
    a, b = (save(tmp_path / name, sets[name]) for name in "ab")
    report = compared(tmp_path / "r.json", b, a, path, "inception", resize="tf1")
    fid = expected["torch_fidelity"]["fid_2048"]
    assert report["fid"] == {"0": pytest.approx(fid, rel=1e-3)}
    score = expected["inception_score_a"]["no_bias_10_splits_shuffled_2020"]
    assert report["inception_score"]["mean"] == pytest.approx(
        score["inception_score_mean"], rel=1e-3
    )
    assert (report["n_real"], report["n_generated"]) == (len(sets["b"]), len(sets["a"]))
    assert report["notes"][0].startswith("FID is biased upwards")


def test_blurs_statistics_and_metrics_against_plain_formulas(folders, network, tmp_path):
    """Blurred files are compared as files; scipy takes the root of the product of covariances."""
    real, generated = folders
    report = compared(
        tmp_path / "r.json",
        *(real, generated, network),
        blur=(0, 2),
        fid_infinity=False,
        precision_recall=True,
        save_statistics=str(tmp_path / "real.npz"),
    )
    extractor = FeatureExtractor("tiny", network, batch_size=8)

    def features(folder, radius):
        files = [Image.open(f"{folder}/{i:03}.png") for i in range(10 if folder != real else 12)]
        if radius:
            files = [file.filter(ImageFilter.GaussianBlur(radius)) for file in files]
        found = [each.pooled for each in extractor(np.asarray(file) for file in files)]
        return np.concatenate(found).astype(np.float64)

    for radius in (0, 2):
        x, y = features(real, radius), features(generated, radius)
        sx, sy = np.cov(x.T), np.cov(y.T)
        root = scipy.linalg.sqrtm(sx @ sy).real
        fid = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sx + sy - 2 * root)
        assert report["fid"][str(radius)] == pytest.approx(fid, rel=1e-6)
    assert report["blur"] == {"kernel": "pil", "sets": "both"}
    assert report["kid"]["subset_size"] == 10
    x, y = features(real, 0), features(generated, 0)
    for name, manifold, others in (("precision", x, y), ("recall", y, x)):
        # The ball of each feature reaches to its third neighbour, itself not counted.
        radii = [np.sort(np.linalg.norm(manifold - each, axis=1))[3] for each in manifold]
        inside = [np.any(np.linalg.norm(manifold - each, axis=1) <= radii) for each in others]
        assert report["precision_recall"][name] == np.mean(inside)
    # The statistics of the real set stand for it.
    again = compared(tmp_path / "s.json", str(tmp_path / "real.npz"), generated, network)
    assert again["fid"]["0"] == pytest.approx(report["fid"]["0"], rel=1e-9)
    assert again["kid"] is None
    one_side = compared(tmp_path / "t.json", real, generated, network, blur=(2,), blur_sets="real")
    assert one_side["fid"]["2"] != pytest.approx(report["fid"]["2"], rel=1e-2)


def test_damage_is_monotone(folders, network, tmp_path):
    """Of a set against itself, and itself blurred, noised and shrunk, each a little and more."""
    real, _ = folders
    pixels = [np.asarray(Image.open(f"{real}/{i:03}.png")) for i in range(12)]
    noise = np.random.default_rng(0).standard_normal((12, SIZE, SIZE, 3))

    def noised(amount):
        return [
            np.clip(x + amount * n, 0, 255).astype(np.uint8)
            for x, n in zip(pixels, noise, strict=True)
        ]

    def blurred(radius):
        filters = ImageFilter.GaussianBlur(radius)
        return [np.asarray(Image.fromarray(x).filter(filters)) for x in pixels]

    def shrunk(factor):
        images = map(Image.fromarray, pixels)
        return [np.asarray(x.reduce(factor).resize(x.size, Image.BILINEAR)) for x in images]

    chains = {
        "blur": [blurred(1), blurred(4)],
        "noise": [noised(10), noised(60)],
        "size": [shrunk(2), shrunk(8)],
    }
    for name, steps in chains.items():
        values = []
        for number, images in enumerate([pixels, *steps]):
            folder = save(tmp_path / f"{name}{number}", images)
            report = compared(tmp_path / f"{name}{number}.json", real, folder, network)
            values.append((report["fid"]["0"], report["kid"]["mean"]))
        fids, kids = zip(*values, strict=True)
        assert fids[0] == pytest.approx(0, abs=1e-6)
        assert fids[0] < fids[1] < fids[2], name
        assert kids[0] < kids[1] < kids[2], name


def test_an_interrupted_evaluation_goes_on(folders, network, tmp_path, monkeypatch):
    real, generated = folders
    whole = compared(tmp_path / "whole.json", real, generated, network)
    given, calls = FeatureExtractor.__call__, []

    def stops(self, images):
        if len(calls) == 1:  # each is of a shard
            raise KeyboardInterrupt
        for found in given(self, images):
            calls.append(len(found.pooled))
            yield found

    monkeypatch.setattr(FeatureExtractor, "__call__", stops)
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        compared(out, real, generated, network)
    assert not out.exists()
    assert (tmp_path / "r.json.unfinished").is_dir()
    done, seen = sum(calls), []

    def counts(self, images):
        for found in given(self, images):
            seen.append(len(found.pooled))
            yield found

    monkeypatch.setattr(FeatureExtractor, "__call__", counts)
    assert compared(out, real, generated, network) == whole
    assert done + sum(seen) == whole["n_real"] + whole["n_generated"]
    assert not (tmp_path / "r.json.unfinished").exists()


def test_unreadable_images_are_left_out_and_named(folders, network, tmp_path, capsys):
    real, generated = folders
    worse = shutil.copytree(real, tmp_path / "worse")
    (worse / "004b.png").write_bytes(b"no image")
    report = compared(tmp_path / "r.json", str(worse), generated, network)
    assert report["n_real"] == 12
    assert (report["unreadable_real"], report["unreadable_generated"]) == (1, 0)
    assert "1 of 13 images cannot be read, such as 004b.png" in capsys.readouterr().err
    assert report["fid"] == compared(tmp_path / "s.json", real, generated, network)["fid"]


def test_what_cannot_be_compared_is_one_line(folders, network, tmp_path):
    real, generated = folders
    (tmp_path / "empty").mkdir()
    one = save(tmp_path / "one", [np.zeros((8, 8, 3), np.uint8)])
    compared(tmp_path / "r.json", real, generated, network, save_statistics=str(tmp_path / "s.npz"))
    cases = {
        "--real .*nowhere: expected a folder": (str(tmp_path / "nowhere"), {}),
        "--real: .*expected images": (str(tmp_path / "empty"), {}),
        "one: 1 image, expected at least 2": (one, {}),
        "cannot be compared: .*resize clean; the other set has .*resize tf1": (
            str(tmp_path / "s.npz"),
            {"resize": "tf1"},
        ),
        "is of images with a blur of 0, expected one of 4 pil": (
            str(tmp_path / "s.npz"),
            {"blur": (4,)},
        ),
        "needs --real": (None, {}),
    }
    for message, (path, asked) in cases.items():
        with pytest.raises(InputError, match=message):
            compared(tmp_path / "x.json", path, generated, network, **asked)
    with pytest.raises(InputError, match=r"--save_statistics .*s: expected a name that ends in"):
        compared(tmp_path / "x.json", real, real, network, save_statistics=str(tmp_path / "s"))
    with pytest.raises(InputError, match="--features none: FID needs one network"):
        images = ImageOptions(real=real, generated=generated)
        evaluate(load_benchmark("fid"), None, str(tmp_path / "x.json"), Options(images=images))
    with pytest.raises(InputError, match=r"expected|no .*Inception"):
        compared(tmp_path / "x.json", real, generated, network, "inception")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"resize": "bicubic"}, "--resize 'bicubic': choices are clean"),
        ({"blur": (1, 1)}, "--blur .*expected different radii"),
        ({"blur": (-1,)}, "--blur -1: expected at least 0"),
        ({"blur_kernel": "box"}, "--blur_kernel 'box': choices are pil, scipy, lafite"),
        ({"blur_sets": "none"}, "--blur_sets 'none': choices are both, real"),
    ],
)
def test_options_of_images_out_of_range(asked, message):
    with pytest.raises(InputError, match=message):
        ImageOptions(**asked)


@pytest.fixture
def program(root, folders, network):
    """The command of `comparing_process`, but for the report."""
    return (root / "tests" / "evaluation" / "comparing_process.py", *folders, network)


@pytest.fixture
def alone(root, program, tmp_path):
    """The report of one process."""
    with Processes(root, (*program, tmp_path / "alone.json"), 1, 1) as running:
        running.succeed()
    return (tmp_path / "alone.json").read_bytes()


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_give_the_report_of_one(root, program, alone, tmp_path, count):
    with Processes(root, (*program, tmp_path / "r.json"), count, 1) as running:
        running.succeed()
        assert "FID (tiny, clean): " in running.output(0)
        assert running.output(0).count("inception score is biased") == 1
        for other in range(1, count):
            said = running.output(other)
            assert "FID " not in said
            assert "inception score" not in said
            # It had a part in it, or came late.
            assert ("has done its part" in said) != ("nothing to do for this process" in said)
    assert (tmp_path / "r.json").read_bytes() == alone
    assert not (tmp_path / "r.json.unfinished").exists()


def test_a_process_that_is_killed_loses_no_more_than_its_shard(root, program, alone, tmp_path):
    """Of three the third goes on; process 0, which writes the report, is started again."""
    out, folder = tmp_path / "r.json", tmp_path / "r.json.unfinished"

    def holders():
        locks = [lock.read_text() for lock in folder.glob("*/blur_0/.rows-*.lock")]
        return {json.loads(lock)["process"] for lock in locks if lock}

    def kept():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*.rows")}

    with Processes(root, (*program, out, 0.4), 3, 1) as running:
        victims = running.all[:2]
        running.wait_until(lambda: {victim.pid for victim in victims} <= holders())
        for victim in victims:
            victim.kill()
        before = kept()
        assert running.statuses()[2] == 0, running.output(2)
        assert "has done its part" in running.output(2)
    assert not out.exists()
    whole = kept()
    assert before.items() <= whole.items()
    assert len(whole) == 2 * (3 + 3)
    with Processes(root, (*program, out, 600), 1, 1) as running:
        running.succeed()  # at once: it computes no row
    assert out.read_bytes() == alone
    assert not folder.exists()


def test_features_of_images_that_changed_meanwhile_are_not_taken(
    folders, network, tmp_path, monkeypatch
):
    """What is left of an interrupted evaluation is of the images as they were then."""
    real, generated = tmp_path / "real", tmp_path / "generated"
    shutil.copytree(folders[0], real)
    shutil.copytree(folders[1], generated)
    given, calls = FeatureExtractor.__call__, []

    def stops(self, images):
        if calls:
            raise KeyboardInterrupt
        calls.append(True)
        return given(self, images)

    out = tmp_path / "r.json"
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            compared(out, str(real), str(generated), network)
    assert list((tmp_path / "r.json.unfinished").rglob("*.rows"))
    Image.new("RGB", (SIZE, SIZE), "red").save(real / "000.png")
    with pytest.raises(InputError, match=r"had measured \(of another set\): give its command"):
        compared(out, str(real), str(generated), network)
    shutil.rmtree(tmp_path / "r.json.unfinished")
    report = compared(out, str(real), str(generated), network)
    fresh = compared(tmp_path / "fresh.json", str(real), str(generated), network)
    assert report == fresh


def test_too_few_images_cost_one_number_and_a_note(folders, network, tmp_path):
    real, generated = folders
    report = compared(tmp_path / "r.json", real, generated, network, fid_infinity=True)
    assert report["fid_infinity"] is None
    assert any("at least 27" in note for note in report["notes"])
    # 10 splits of one image each: the score is 1 whatever the images are.
    assert report["inception_score"]["mean"] == pytest.approx(1)
    assert any(
        "inception score" in note and "split of 1 images" in note for note in report["notes"]
    )


def test_the_fewest_images_that_are_extrapolated():
    rows = np.random.default_rng(0).standard_normal((LEAST_FOR_INFINITY, 40))
    moments = Moments.of(rows)
    assert fid_infinity(rows, moments).n == LEAST_FOR_INFINITY
    with pytest.raises(InputError, match="all sizes differ"):
        fid_infinity(rows[:-1], moments)


def test_where_statistics_cannot_be_kept_is_said_first(folders, network, tmp_path):
    """Before features are computed, which takes hours."""
    real, generated = folders
    out, folder = tmp_path / "r.json", tmp_path / "s.npz"
    with pytest.raises(InputError, match=r"--save_statistics s\.txt: expected .* \.npz"):
        compared(out, real, generated, network, save_statistics="s.txt")
    folder.mkdir()
    with pytest.raises(InputError, match=r"--save_statistics .* is a folder"):
        compared(out, real, generated, network, save_statistics=str(folder))
    assert not (tmp_path / "r.json.unfinished").exists()


def test_a_folder_that_is_no_bundle_is_one_line(folders, tmp_path):
    with pytest.raises(InputError, match="bundle"):
        evaluate(load_benchmark("tokenizer"), folders[0], str(tmp_path / "r.json"), Options())
