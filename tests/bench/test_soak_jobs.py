"""What the soak test accepts as the end of a job on a disk that fails."""

import subprocess
import sys

import pytest

from bench.soak_jobs import Jobs


@pytest.mark.parametrize("before", ["", "Traceback (most recent call last):\n  ...\n"])
def test_a_job_ends_with_one_line_and_no_traceback(tmp_path, before):
    jobs = object.__new__(Jobs)  # without its images and its disk
    jobs._said = tmp_path / "said.txt"
    jobs._said.write_text(f"{before}error: out: No space left on device\n")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    if before:
        with pytest.raises(AssertionError, match="expected one line, No space left"):
            jobs._fails_with("No space left", process)
    else:
        jobs._fails_with("No space left", process)
