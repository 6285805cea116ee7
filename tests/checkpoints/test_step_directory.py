"""What counts as a checkpoint; test_checkpointer.py damages them, test_processes.py shares them."""

from checkpoints.small import names, saved

from cogview_jax.checkpoints import step_directory
from cogview_jax.checkpoints.retention import Retention
from cogview_jax.checkpoints.step_directory import StepDirectory
from cogview_jax.runtime.errors import SystemFault
from cogview_jax.runtime.folder_share import FolderShare
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from processes import left_by_the_dead


def test_only_numbers_are_checkpoints_and_they_are_ordered_as_numbers(tmp_path):
    directory = StepDirectory(tmp_path / "c", tmp_path / "damaged", FolderShare.of_all())
    assert directory.steps() == []
    for name in ("9", "10", "100", "300.orbax-checkpoint-tmp", "notes", "-5"):
        (tmp_path / "c" / name).mkdir(parents=True)
    left_by_the_dead(tmp_path / "c" / "200").mkdir()
    assert directory.steps() == [100, 10, 9]
    directory.remove_leftovers()
    assert names(tmp_path / "c") == ["-5", "10", "100", "9", "notes"]


def test_one_that_says_nothing_of_itself_neither_counts_nor_goes(tmp_path):
    saved(tmp_path / "c", 1, 2, 3, 4)
    (tmp_path / "c" / "4" / "meta" / "metadata").write_text("{")
    (tmp_path / "c" / "1" / "meta" / "metadata").unlink()
    directory = StepDirectory(tmp_path / "c", tmp_path / "damaged", FolderShare.of_all())
    directory.thin_out(Retention(1), KVStoreSync(1), "gone")
    assert names(tmp_path / "c") == ["1", "3", "4"]


def test_a_disk_that_fails_while_old_ones_are_looked_at_ends_no_run(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "c", 1, 2)

    def fails(folder):
        raise SystemFault(f"{folder}: Input/output error (6 tries)")

    monkeypatch.setattr(step_directory, "read_meta", fails)
    directory = StepDirectory(tmp_path / "c", tmp_path / "damaged", FolderShare.of_all())
    directory.thin_out(Retention(1), KVStoreSync(1), "gone")
    assert names(tmp_path / "c") == ["1", "2"]
    said = capsys.readouterr().err
    assert "an old checkpoint could not be deleted" in said
    assert "Input/output error (6 tries)" in said
