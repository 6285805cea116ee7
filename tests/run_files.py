"""What a run leaves in its workdir, as tests compare it."""

import json


def logged(workdir):
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = (workdir / "metrics" / "metrics.jsonl").read_text().splitlines()
    timings = ("tokens_per_second", "mfu", "goodput")
    return [
        {name: value for name, value in json.loads(line).items() if name not in timings}
        for line in lines
    ]


def steps(workdir):
    """The steps of its checkpoints, without one that a kill has cut short."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if not name.startswith("."))
