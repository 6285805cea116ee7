"""Benchmarks of two trees in turns: what is compared, and a commit that really runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import against

PROGRAM = """
import json, pathlib
calls = pathlib.Path("calls")
number = len(calls.read_text()) if calls.exists() else 0
calls.write_text("x" * (number + 1))
result = {"seconds": %d + number, "size": 7, "rows": [{"bytes": %d}], "name": "a", "flag": True%s}
results = pathlib.Path("bench/results")
results.mkdir(exist_ok=True)
(results / "one.json").write_text(json.dumps(result))
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository of two commits, whose benchmark says other numbers in each."""
    root = tmp_path / "tree"
    (root / "bench").mkdir(parents=True)
    (root / "bench" / "__init__.py").touch()

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)

    git("init", "--quiet")
    for numbers in ((10, 400, ""), (5, 100, ', "new": 1')):
        (root / "bench" / "one.py").write_text(PROGRAM % numbers)
        git("add", "bench")
        git("commit", "--quiet", "-m", "a commit")
    monkeypatch.setattr(against, "ROOT", root)
    return root


def test_both_trees_run_in_turns_and_are_compared(tree, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["against", "HEAD~1", "one", "--turns", "3"])
    against.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    # Seconds were 10, 11, 12 and are 5, 6, 7; the size is the same, and "new" is not in both.
    assert rows == [
        ["seconds", "11", "6", "0.545", "(0.500", "to", "0.583)"],
        ["rows.0.bytes", "400", "100", "0.250", "(0.250", "to", "0.250)"],
    ]
    assert Path(tree, "calls").read_text() == "xxx"
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=tree, check=True, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nothing", "one"], "git worktree"), (["HEAD", "two"], "bench.two in .*: status 1")],
)
def test_what_cannot_run_is_said(tree, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["against", *arguments])
    with pytest.raises(SystemExit, match=message):
        against.main()
