"""What a checkpoint says of itself beside its arrays."""

import errno
import json

import pytest
from checkpoints.small import saved

from cogview_jax.checkpoints.stored_step import examine, one_line, read_meta, write_meta


def test_meta_says_where_to_go_on(tmp_path):
    write_meta(tmp_path, 9, 7, {"loss": 0.5, "grad_norm": float("inf"), "lr": float("nan")})
    assert read_meta(tmp_path) == {
        "format": 1,
        "step": 9,
        "updates": 7,
        "next_batch": 9,
        "metrics": {"loss": 0.5},
    }
    (tmp_path / "noted").mkdir()
    write_meta(tmp_path / "noted", 9, 7, {}, {"cores": 2})
    assert read_meta(tmp_path / "noted")["notes"] == {"cores": 2}
    (tmp_path / "meta" / "metadata").write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_meta(tmp_path)


def test_what_has_no_manifest_is_believed_only_if_it_never_had_one(tmp_path):
    folder = saved(tmp_path / "c", 3) / "3"
    assert examine(folder, 0, 1) == ([], True)
    (folder / "manifest.json").unlink()
    assert examine(folder, 0, 1) == (["manifest.json: is missing"], True)
    meta = folder / "meta" / "metadata"
    meta.write_text(json.dumps({"step": 3, "updates": 3}))
    assert examine(folder, 0, 1) == ([], False)
    meta.write_text("{")
    ((line,), known) = examine(folder, 0, 1)
    assert line.startswith("meta/metadata: ")
    assert known


def test_an_error_is_one_line():
    assert one_line(OSError(errno.ENOSPC, "No space", "a/b")) == "No space: a/b"
    assert one_line(ValueError("first\nsecond\n")) == "first"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(TimeoutError()) == "it took too long"
    assert len(one_line(ValueError("x" * 1000))) == 300


@pytest.mark.parametrize(
    "meta",
    [
        *({"updates": "3"}, {"updates": -1}, {"updates": 2**80}, {"step": True}),
        *({"metrics": [1]}, {"metrics": {"loss": "low"}}, {"next_batch": None}),
    ],
)
def test_types_of_what_is_recorded_are_checked(tmp_path, meta):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "metadata").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="meta/metadata has"):
        read_meta(tmp_path)


def test_a_deep_record_is_damage(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "metadata").write_text("[" * 100_000)
    ((line,), known) = examine(tmp_path, 0, 1)
    assert "nested too deeply" in line
    assert known
