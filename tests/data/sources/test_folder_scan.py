"""What is found in a folder, what is ignored there, and that both together are all of it."""

import errno
import os

import pytest
from PIL import Image

from cogview_jax.data.images import SUFFIXES
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.data.sources.folder_scan import scan_folder
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError, SystemFault


def touch(root, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_every_file_is_a_record_or_counted(tmp_path):
    touch(tmp_path, "a.PNG", "a.txt", "b.gif", "b/c.tiff", "b/c.txt", "b/d.webp", ".e/f.jfif")
    touch(tmp_path, "g.heic", "b/h.heic", "README", "metadata.jsonl", "b/captions.jsonl")
    touch(tmp_path, ".DS_Store", "._a.PNG", "c.txt", "nothing.png/inside.md")
    scan = scan_folder(str(tmp_path))
    assert scan.images == [".e/f.jfif", "a.PNG", "b.gif", "b/c.tiff", "b/d.webp"]
    assert scan.texts == 2
    assert scan.ignored.counts == {
        "of ending .heic": 2,
        "hidden": 2,
        "without an ending": 1,
        "of ending .jsonl": 1,
        "captions.jsonl of sub folders": 1,
        "of ending .txt": 1,
        "of ending .md": 1,
    }
    files = [name for _, _, names in os.walk(tmp_path) for name in names]
    assert len(scan.images) + scan.texts + scan.ignored.counts.total() == len(files)
    said = str(scan.ignored)
    assert said.startswith("ignored 9: 2 ")
    assert "1 captions.jsonl of sub folders (b/captions.jsonl)" in said


def test_one_line_says_the_most_important(tmp_path):
    touch(tmp_path, "1.png", *(f"{i}.of{i}" for i in range(30)), *(f"x.of{i}" for i in range(5)))
    touch(tmp_path, "metadata.jsonl", "labels.csv", "sub/captions.jsonl")
    said = str(scan_folder(str(tmp_path)).ignored)
    assert said.startswith("ignored 38: 1 captions.jsonl of sub folders (sub/captions.jsonl), ")
    assert "1 of ending .jsonl (metadata.jsonl), 2 of ending .of0 (such as 0.of0)" in said
    assert said.endswith(", 25 of other endings")


def test_images_of_every_documented_format_are_found_and_read(tmp_path):
    for i, suffix in enumerate(SUFFIXES):
        kind = {".jfif": "JPEG"}.get(suffix)
        Image.new("RGB", (8, 8), (9 * i, 9 * i, 9 * i)).save(tmp_path / f"{i}{suffix}", kind)
    source = FolderSource(tmp_path, require_captions=False)
    assert len(source) == len(SUFFIXES)
    for i in range(len(source)):
        number = int(source.key(i).split(".")[0])
        assert abs(int(source[i].image.mean()) - 9 * number) <= 2


def test_linked_folders_are_followed_and_each_real_one_is_listed_once(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "b/1.png", "c/2.png")
    touch(outside, "3.png", "deep/4.png")
    (root / "a").symlink_to("b")  # before what it leads to
    (root / "c" / "circle").symlink_to(root)
    (root / "d").symlink_to(outside)
    (root / "e").symlink_to(outside / "deep")
    (outside / "back").symlink_to(root)
    scan = scan_folder(str(root))
    assert scan.images == ["b/1.png", "c/2.png", "d/3.png", "d/deep/4.png"]
    assert scan.ignored.counts == {"linked to what is there already": 4}
    assert "such as a)" in str(scan.ignored)


def test_linked_images_and_links_that_lead_nowhere_are_records(tmp_path):
    touch(tmp_path, "outside.png", "root/1.png")
    (tmp_path / "root" / "2.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "root" / "3.png").symlink_to("gone")
    (tmp_path / "root" / "4.png").symlink_to("4.png")
    assert scan_folder(str(tmp_path / "root")).images == ["1.png", "2.png", "3.png", "4.png"]


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """Listing the sub folder "closed" fails with an error so many times."""
    monkeypatch.setattr(faults, "PAUSES", (0.0,))
    touch(tmp_path, "1.png", "closed/2.png")
    real = os.scandir

    def fail(number: int, times: int):
        left = [times]

        def listed(path):
            if path.endswith("closed") and left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number), path)
            return real(path)

        monkeypatch.setattr(os, "scandir", listed)

    return fail


def test_folders_that_may_not_be_listed_are_counted(tmp_path, failing):
    # The tests may run as root, for whom there is no such folder.
    failing(errno.EACCES, 1)
    scan = scan_folder(str(tmp_path))
    assert scan.images == ["1.png"]
    reason = "not to be listed: Permission denied"
    assert str(scan.ignored) == f"ignored 1: 1 {reason} (closed)"
    failing(errno.EACCES, 1)
    with pytest.raises(InputError, match="closed: cannot be listed: Permission denied"):
        scan_folder(str(tmp_path / "closed"))


def test_a_failing_disk_loses_no_folder(tmp_path, failing):
    failing(errno.EIO, 1)
    assert scan_folder(str(tmp_path)).images == ["1.png", "closed/2.png"]
    failing(errno.EIO, 2)
    with pytest.raises(SystemFault, match="closed: Input/output error"):
        scan_folder(str(tmp_path))


def test_what_a_listing_leaves_out_is_said(tmp_path):
    touch(tmp_path, "a.png", "b/c.png", "d.png", "e.heic")
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "caption": "x"}\n{')
    described = FolderSource(tmp_path).describe()
    assert described.startswith("2 lines of captions.jsonl; ignored 3: ")
    assert "2 that captions.jsonl does not list (such as b/c.png)" in described
    assert "1 of ending .heic (e.heic)" in described
