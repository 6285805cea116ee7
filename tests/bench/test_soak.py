"""The soak in short: a run meets six faults and ends where the unbroken run ends."""

from bench.soak import EVERY, Plan, soak

FAULTS = (
    *("killed_while_saving", "full_disk", "bit_flipped"),
    *("one_frozen", "asked_to_stop", "other_hosts"),
)


def test_a_run_survives_what_can_happen_to_it(tmp_path):
    plan = Plan("run", ((2, 2), (1, 4)), FAULTS, (1, 4))
    run = soak(tmp_path, [plan], steps=100, seed=0, fsdp=2)["runs"]["run"]
    assert run["equal"], run
    faults = {fault["kind"]: fault for fault in run["faults"]}
    assert tuple(faults) == FAULTS
    # Who is asked in time, or has only lost a checkpoint, loses no step.
    for kind in ("asked_to_stop", "other_hosts", "full_disk"):
        assert faults[kind]["lost"] == 0, faults[kind]
    # Besides the steps since the last checkpoint, one that was being written meanwhile.
    assert faults["killed_while_saving"]["lost"] <= 3 * EVERY
    # The newest checkpoint was damaged: the one before it was used.
    assert EVERY <= faults["bit_flipped"]["lost"] <= 4 * EVERY
