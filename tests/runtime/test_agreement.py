"""A run of one; test_processes.py has runs of several, and of one that says nothing."""

from cogview_jax.runtime.agreement import Agreement


def test_alone_it_hears_itself():
    agreement = Agreement(1)
    assert agreement.exchange("a", {"x": [1, None]}) == [{"x": [1, None]}]
    assert agreement.first("b", lambda: 5) == 5
