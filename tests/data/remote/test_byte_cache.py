"""The cache of bytes: its limit, damaged entries, and several processes."""

import os
import threading

from cogview_jax.data.remote.byte_cache import ByteCache


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_bytes_come_back(tmp_path):
    cache = ByteCache(tmp_path, 10_000)
    assert cache.get("a", 1) is None
    cache.put(b"data", "a", 1)
    assert cache.get("a", 1) == b"data"
    assert cache.get("a", 2) is None
    assert ByteCache(tmp_path, 10_000).get("a", 1) == b"data"


def test_names_say_nothing(tmp_path):
    ByteCache(tmp_path, 10_000).put(b"data", "https://h/secret.tar?$TOKEN")
    (path,) = entries(tmp_path)
    assert "secret" not in str(path.relative_to(tmp_path))
    assert os.stat(path.parent).st_mode & 0o077 == 0


def test_damaged_entries_are_deleted(tmp_path):
    cache = ByteCache(tmp_path, 10_000)
    for damage in (lambda data: data[:-1], lambda data: data[:-1] + b"x", lambda data: b""):
        cache.put(b"data", "a")
        (path,) = entries(tmp_path)
        path.write_bytes(damage(path.read_bytes()))
        assert cache.get("a") is None
        assert entries(tmp_path) == []


def test_what_was_not_used_for_long_goes_first(tmp_path):
    cache = ByteCache(tmp_path, 10_000)
    for i in range(9):
        cache.put(bytes(968), i)  # 1,000 with its hash
        for path in entries(tmp_path):  # an hour older each time
            os.utime(path, (0, path.stat().st_mtime - 3600))
    assert all(cache.get(i) is not None for i in (0, 3))
    for i in range(9, 12):
        cache.put(bytes(968), i)
    kept = [i for i in range(12) if cache.get(i) is not None]
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 10_000
    assert {0, 3, 9, 10, 11} <= {*kept}
    assert 1 not in kept


def test_a_smaller_limit_holds_at_once(tmp_path):
    cache = ByteCache(tmp_path, 100_000)
    for i in range(50):
        cache.put(bytes(968), i)
    ByteCache(tmp_path, 5_000)
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 5_000


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path):
    cache = ByteCache(tmp_path, 1_000)
    cache.put(bytes(2_000), "a")
    assert entries(tmp_path) == []


def test_two_caches_of_one_folder_write_and_delete_at_once(tmp_path):
    caches = [ByteCache(tmp_path, 20_000) for _ in range(2)]

    def use(cache, errors):
        try:
            for i in range(200):
                cache.put(i.to_bytes(2) * 250, i)
                found = cache.get(i)
                assert found in (None, i.to_bytes(2) * 250)
        except BaseException as error:
            errors.append(error)

    errors = []
    threads = [threading.Thread(target=use, args=(cache, errors)) for cache in caches * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 2 * 20_000


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, capsys):
    place = tmp_path / "file"
    place.write_text("x")
    cache = ByteCache(place / "cache", 1_000)
    cache.put(b"data", "a")
    cache.put(b"data", "b")
    assert cache.get("a") is None
    assert capsys.readouterr().err.count("not kept any more") == 1
