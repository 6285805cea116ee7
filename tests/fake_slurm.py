"""A SLURM of one machine: `srun` starts a process a node, `scontrol` notes what it is told."""

import os
import stat
import sys
from pathlib import Path

SRUN = """#!{python}
import os, signal, subprocess, sys

command = sys.argv[1:]
while command[0].startswith("--"):  # srun's own options
    command.pop(0)
nodes = int(os.environ["SLURM_NNODES"])
tasks = []
for node in range(nodes):
    place = {{
        "SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_LOCALID": "0",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_STEP_NUM_TASKS": str(nodes),
        "SLURM_NTASKS": str(nodes), "SLURMD_NODENAME": f"node{{node}}",
    }}
    tasks.append(subprocess.Popen(command, env=os.environ | place, start_new_session=True))

def forward(number, frame):
    for task in tasks:
        task.send_signal(number)

signal.signal(signal.SIGTERM, forward)
worst = 0
for task in tasks:
    worst = max(worst, task.wait() % 256)
sys.exit(worst)
"""

SCONTROL = """#!{python}
import os, sys

if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(["localhost"] * int(os.environ["SLURM_NNODES"])))
else:
    with open(os.environ["FAKE_SLURM_LOG"], "a") as log:
        log.write(" ".join(sys.argv[1:]) + "\\n")
"""


def install(folder: Path, root: Path, nodes: int, job: int) -> dict[str, str]:
    """Writes the two programs into `folder`; returns what a batch script has in its environment."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        path = folder / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "FAKE_SLURM_LOG": str(folder / "scontrol.log"),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": f"localhost[1-{nodes}]",
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes),
        "SLURM_PROCID": "0",
        "SLURM_SUBMIT_DIR": str(root),
    }
