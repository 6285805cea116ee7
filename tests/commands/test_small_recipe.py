"""The recipe for one's own images, on a folder of real ones of which some are broken."""

import json

import pytest
from PIL import Image

from cogview_jax.data import emoji_set
from command_runs import call

#: As few steps as there can be, of a model that is compiled in no time.
TINY = (
    *("--config.train.steps=2", "--config.train.global_batch=8", "--config.train.log_every=1"),
    *("--config.train.checkpoint_every=1", "--config.train.sample_every=0"),
)
CODEC = ("--config.model.channels=(8,8,8)", "--config.model.residual_blocks=0")
TRANSFORMER = ("--config.model.layers=2", "--config.model.width=32", "--config.model.heads=2")


@pytest.fixture
def images(tmp_path):
    """Forty images; the second cannot be read, the fifth is not there."""
    folder, lines = tmp_path / "my_images", []
    folder.mkdir()
    for number in range(40):
        concept, style = emoji_set.concepts()[number], emoji_set.STYLES[number % 4]
        name = f"{number}.png"
        if number != 4:
            Image.fromarray(emoji_set.tile(number, number % 4)).save(folder / name)
        lines.append({"file": name, "caption": emoji_set.caption(concept, style, "en")})
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    listing = "\n".join(json.dumps(line) for line in lines)
    (folder / "captions.jsonl").write_text(listing, encoding="utf-8")
    return folder


def test_ones_own_images_are_named_once_and_broken_ones_are_skipped(root, images, tmp_path):
    codec, run = tmp_path / "codec", tmp_path / "mine"
    steps = {
        "train": [
            *("--config=small_codec:64", f"--workdir={codec}", *TINY, *CODEC),
            *(f"--config.data.source.path={images}", "--config.train.steps=6"),
            "--config.data.max_skipped=0.1",
        ],
        "prepare": ["--config=small:64", f"--workdir={run}", f"--config.data.from={codec}"],
    }
    steps["prepare"] += [*TINY, *TRANSFORMER]
    said = {}
    for command, arguments in steps.items():
        result = call(root, command, *arguments)
        assert result.returncode == 0, result.stderr
        said[command] = result.stderr
    # 48 rows are more than an epoch: all files were read but for the two that are held out.
    assert "codec: 2 of the 38 records that were read could not be used and were" in said["train"]
    skipped = [json.loads(x) for x in (run / "tokens" / "skipped.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in skipped] == ["1.png", "4.png"]
    result = call(root, "train", "--config=small:64", f"--workdir={run}", *TINY, *TRANSFORMER)
    assert result.returncode == 0, result.stderr
    assert "304 examples, 8 of each image, 304 captions in " in result.stderr
    assert "; 2 records were skipped when it was prepared" in result.stderr
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["source"]["path"] == str(images)
    assert config["data"]["image_tokenizer"] == f"{codec}/bundle"
    result = call(
        *(root, "sample", "--task=text_to_image", "--prompt=fox in flat style"),
        *(f"--bundle={run}", f"--out={tmp_path / 'out'}"),
    )
    assert result.returncode == 0, result.stderr
    (sample,) = map(json.loads, (tmp_path / "out" / "samples.jsonl").read_text().splitlines())
    assert Image.open(tmp_path / "out" / sample["file"]).size == (64, 64)
