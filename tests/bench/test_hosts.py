"""Two hosts on a network of their own: the losses of one, and the bytes that were foreseen."""

import pytest

from bench import hosts


def test_two_hosts_train_as_one_and_send_what_was_foreseen(tmp_path, monkeypatch):
    if reason := hosts.why_not():
        pytest.skip(f"this machine cannot make a network of hosts: {reason}")
    monkeypatch.setattr(hosts, "MESHES", {"fsdp": (1, -1)})
    row = hosts.measure(tmp_path, hosts=2, steps=40)["meshes"]["fsdp"]
    assert row["largest_difference_of_a_loss"] < 1e-5
    assert row["steps_counted"] > 10
    # Headers, acknowledgements and heartbeats come on top.
    assert 1.0 < row["ratio"] < 1.15
