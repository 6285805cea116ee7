"""The room that copies of bundles take."""

import os
import shutil
import time

import pytest

from cogview_jax.checkpoints import copied_bundles
from cogview_jax.checkpoints.remote_bundle import bundle_copy
from cogview_jax.runtime.errors import InputError
from served_bundles import HUB, on_hub


def old_copy(cache, key, size, days):
    place = cache / key / "model"
    place.mkdir(parents=True)
    (place / "bundle.json").write_bytes(bytes(size))
    past = time.time() - days * 86400
    os.utime(cache / key, (past, past))
    return place


def test_copies_that_were_not_used_for_long_are_deleted(server, bundle, cache, monkeypatch):
    old, new = old_copy(cache, "a" * 16, 600_000, 3), old_copy(cache, "b" * 16, 600_000, 2)
    half = old_copy(cache, "c" * 16 + ".partial", 600_000, 4)
    monkeypatch.setenv(copied_bundles.LIMIT, "0.001")
    place = bundle_copy(on_hub(server, bundle))
    assert [path.exists() for path in (old, half, new, place)] == [False, False, True, True]


def test_copies_in_use_stay(server, bundle, cache, monkeypatch):
    used = old_copy(cache, "a" * 16, 600_000, 3)
    copied_bundles.CopiedBundles().use(used)
    monkeypatch.setenv(copied_bundles.LIMIT, "0")
    place = bundle_copy(on_hub(server, bundle))
    assert used.exists()
    assert place.exists()


def test_another_process_may_delete_copies_meanwhile(cache, monkeypatch):
    gone, stays = old_copy(cache, "a" * 16, 600_000, 3), old_copy(cache, "b" * 16, 600_000, 2)
    measured = copied_bundles._size

    def meanwhile(folder):
        shutil.rmtree(gone.parent, ignore_errors=True)
        return measured(folder)

    monkeypatch.setattr(copied_bundles, "_size", meanwhile)
    copied_bundles.CopiedBundles().trim()
    assert stays.exists()


def test_a_limit_that_is_no_number(server, bundle, monkeypatch):
    monkeypatch.setenv(copied_bundles.LIMIT, "much")
    with pytest.raises(InputError, match="COGVIEW_BUNDLES_GB = 'much': expected a number of GB"):
        bundle_copy(on_hub(server, bundle))


def test_a_cache_that_cannot_be_written(server, bundle, cache):
    cache.parent.parent.write_text("a file")
    with pytest.raises(InputError, match=f"^{HUB}: .*/cache/.*XDG_CACHE_HOME"):
        bundle_copy(on_hub(server, bundle))
