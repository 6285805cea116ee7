"""A run of one; test_processes.py has runs of several, and of one that says nothing."""

from cogview_jax.runtime.kv_store_sync import KVStoreSync


def test_alone_it_hears_itself():
    sync = KVStoreSync(1)
    assert sync.all_gather("a", {"x": [1, None]}) == [{"x": [1, None]}]
    assert sync.broadcast("b", lambda: 5) == 5
