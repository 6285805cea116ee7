"""What a run says of itself: sizes told by hand, and how far its steps are."""

import dataclasses

import jax.numpy as jnp
import pytest

import tiny
from cogview_jax.models.config import TransformerConfig
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.tasks.announcement import StepsUnderWay, announcement
from cogview_jax.tasks.experiment import read_experiment


@dataclasses.dataclass
class Records:
    count: int

    def __len__(self):
        return self.count

    def key(self, i):
        return str(i)

    def __getitem__(self, i):
        raise AssertionError("no record is read")


class Listing(Records):
    def describe(self):
        return f"{self.count} records in a/b, 3 files ignored (.gif)"


def experiment(stage, **sections):
    train = {"steps": 900, "global_batch": 1024, "accumulate": 4}
    data = {"source": {"kind": "folder"}}
    return read_experiment(
        {"stage": stage, "train": train, "data": data, "optimizer": {}, "model": {}} | sections
    )


def test_a_codec():
    told = announcement(
        experiment("image_tokenizer", model=dataclasses.asdict(tiny.CODEC)),
        Listing(1234),
        tiny.start(tiny.codec_objective()),
        make_mesh(MeshConfig(data=2, fsdp=4)),
        start=0,
    )
    # Encoder: a 4 x 4 convolution, 3 x 3 and 1 x 1 of a residual block, 1 x 1; the mirror of it.
    encoder = 16 * 3 * 16 + 16 + (9 * 16 * 16 + 16 + 16 * 16 + 16) + 16 * 8 + 8
    block = 9 * 16 * 16 + 16 + 16 * 16 + 16
    decoder = (9 * 8 * 16 + 16) + block + (16 * 16 * 16 + 16) + (16 * 3 + 3)
    assert told == [
        "data: 1234 records in a/b, 3 files ignored (.gif)",
        "model: image_tokenizer, images of 8 x 8 pixels as 4 x 4 codes of 32;"
        f" {encoder + decoder:,} parameters",
        "devices: 8 x cpu (mesh.data 2, mesh.fsdp 4, mesh.tensor 1); precision float32",
        "steps: 0 of 900 done; 1,024 rows a step in 4 parts",
    ]


@pytest.mark.parametrize(
    ("model", "attention"),
    [({}, "dense (blocks)"), ({"attention": "sparse"}, "sparse (window 128 x 6, 768 pivots)")],
)
def test_a_transformer(model, attention):
    config = dataclasses.asdict(tiny.TRANSFORMER) | model
    sections = {
        "model": config,
        "vocabulary": dataclasses.asdict(tiny.VOCABULARY),
        "layout": dataclasses.asdict(tiny.LAYOUT),
    }
    told = announcement(
        experiment("transformer", **sections, precision="bfloat16"),
        Records(20_000),
        tiny.start(tiny.transformer_objective(TransformerConfig(**config))),
        make_mesh(MeshConfig()),
        start=30,
    )
    assert told[0] == "data: 20,000 records"
    assert told[1].startswith(
        "model: transformer, text_to_image sequences of 13 tokens (up to 5 of text, 2 x 2 codes),"
        " 128 ids; "
    )
    assert told[2].endswith(f"; precision bfloat16, attention {attention}, decoding layers")
    assert told[3] == "steps: 30 of 900 done; 1,024 rows a step in 4 parts"


class NotYet:
    def is_ready(self):
        return False


def test_steps_are_finished_when_their_loss_is_there():
    under_way = StepsUnderWay()
    assert under_way.finished() is None
    for step in (1, 2, 3):
        under_way.started(step, {"loss": jnp.float32(step / 4).block_until_ready()})
    under_way.started(4, {"loss": NotYet()})
    assert under_way.finished() == (3, {"loss": 0.75})
    assert under_way.finished() is None
