"""The files that only a cluster can run: shell, YAML and the image, checked without one."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = ("slurm.sbatch", "tpu_pod.sh")


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_are_clean(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    beside = Path(sys.executable).parent / "shellcheck"
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert checker, "shellcheck comes with the extra [dev]"
    found = subprocess.run([checker, LAUNCH / script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_slurm_stops_before_its_grace_is_over():
    text = (LAUNCH / "slurm.sbatch").read_text()
    notice = int(re.search(r"--signal=B:TERM@(\d+)", text)[1])
    assert notice > int(re.search(r"GRACE=\$\{GRACE:-(\d+)\}", text)[1])


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ((), {"ZONE": "z"}, "launch/tpu_pod.sh create"),
        (("run", "x"), {}, "error: ZONE is not set"),
        (("fly",), {"ZONE": "z"}, "unknown action 'fly': expected create, setup, run, logs, stop"),
        (("run",), {"ZONE": "z"}, "launch/tpu_pod.sh run"),
    ],
)
def test_wrong_use_of_the_tpu_script_is_explained(arguments, environ, message):
    command = ["bash", LAUNCH / "tpu_pod.sh", *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"} | environ
    )
    assert result.returncode == 2
    assert message in result.stdout + result.stderr


def test_usage_of_the_tpu_script_is_its_comment():
    result = subprocess.run(["bash", LAUNCH / "tpu_pod.sh"], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Trains on a Cloud TPU pod slice")
    assert lines[-1].endswith("or a Filestore at the same path on every host.")


def test_the_tpu_script_starts_the_supervisor_on_every_host(tmp_path):
    fake = tmp_path / "gcloud"
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    result = subprocess.run(
        ["bash", LAUNCH / "tpu_pod.sh", "run", "--workdir", "a b"],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "ZONE": "z", "TPU_NAME": "t"},
        check=True,
    )
    said = result.stdout.splitlines()
    assert said[:9] == [
        "compute",
        "tpus",
        "tpu-vm",
        "ssh",
        "t",
        "--zone",
        "z",
        "--worker=all",
        "--command",
    ]
    remote = "\n".join(said[9:])
    # What arrives is a shell command that keeps the arguments apart.
    assert "launch/local.py --detect -n 1 --" in remote
    assert "cogview_jax.train --workdir a\\ b" in remote
    subprocess.run(["bash", "-n", "-c", remote], check=True)


def test_what_the_tpu_script_has_started_it_can_stop(tmp_path):
    def program(path, *lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
        path.chmod(0o755)

    program(tmp_path / "bin" / "gcloud", f'cd {tmp_path} && exec bash -c "${{@: -1}}"')
    supervisor = tmp_path / "cogview_jax" / ".venv" / "bin" / "python"
    program(
        supervisor,
        "echo $$ > own.pid",
        "trap 'echo stopped > ended; exit 75' TERM",
        "while [ ! -e ended ]; do sleep 0.05; done",
    )
    environ = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "ZONE": "z"}
    own, ended = (tmp_path / "cogview_jax" / name for name in ("own.pid", "ended"))

    def call(*arguments):
        subprocess.run(["bash", LAUNCH / "tpu_pod.sh", *arguments], env=environ, check=True)

    try:
        call("run", "--workdir", "w")
        wait_until(lambda: own.exists() and own.read_text())
        call("stop")
        wait_until(lambda: ended.exists() and ended.read_text() == "stopped\n")
    finally:
        ended.write_text("")  # ends it in any case


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Of the API's fields those that are used: name -> type, or the fields below it.
ENV = {"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}
CONTAINER = {
    "name": str,
    "image": str,
    "args": [str],
    "env": [ENV],
    "ports": [{"containerPort": int}],
    "resources": {"limits": {str: int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "restartPolicy": ("Never", "OnFailure"),
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {str: str},
    "containers": [CONTAINER],
    "volumes": [
        {
            "name": str,
            "persistentVolumeClaim": {"claimName": str},
            "emptyDir": {"medium": str},
        }
    ],
}
RULE = {
    "action": ("FailJob", "FailIndex", "Ignore", "Count"),
    "onExitCodes": {"containerName": str, "operator": ("In", "NotIn"), "values": [int]},
}
JOB = {
    "completionMode": ("Indexed", "NonIndexed"),
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [RULE]},
    "template": {"spec": POD},
}
JOBSET = {
    "apiVersion": ("jobset.x-k8s.io/v1alpha2",),
    "kind": ("JobSet",),
    "metadata": {"name": str},
    "spec": {
        "network": {"enableDNSHostnames": bool},
        "failurePolicy": {"maxRestarts": int},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}


def wrong(found, expected, where=""):
    """What in a document is not as its schema has it."""
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return [f"{where} is no mapping"]
        if str in expected:  # any names
            return [
                w for key, v in found.items() for w in wrong(v, expected[str], f"{where}.{key}")
            ]
        return [
            line
            for key, value in found.items()
            for line in (
                wrong(value, expected[key], f"{where}.{key}")
                if key in expected
                else [f"{where}.{key} is unknown"]
            )
        ]
    if isinstance(expected, list):
        if not isinstance(found, list):
            return [f"{where} is no list"]
        return [w for i, v in enumerate(found) for w in wrong(v, expected[0], f"{where}[{i}]")]
    if isinstance(expected, tuple):
        return [] if found in expected else [f"{where} = {found!r}: choices are {expected}"]
    return [] if type(found) is expected else [f"{where} = {found!r} is no {expected.__name__}"]


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def test_the_jobset_fits_the_api(jobset):
    assert wrong(jobset, JOBSET) == []
    broken = jobset | {"kind": "Jobset", "spec": jobset["spec"] | {"failurePolicy": {"max": "1"}}}
    assert wrong(broken, JOBSET) == [
        ".kind = 'Jobset': choices are ('JobSet',)",
        ".spec.failurePolicy.max is unknown",
    ]


def test_the_jobset_belongs_together(jobset):
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    environ = {entry["name"]: entry for entry in container["env"]}
    host, port = environ["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    name = jobset["metadata"]["name"]
    assert host == f"{name}-{group['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    assert job["completionMode"] == "Indexed"
    count = int(environ["JAX_NUM_PROCESSES"]["value"])
    assert count == job["parallelism"] == job["completions"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    grace = next(int(a.split("=")[1]) for a in container["args"] if a.startswith("--grace="))
    assert grace < pod["terminationGracePeriodSeconds"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    # A policy about exit codes needs pods that are not restarted in place.
    assert pod["restartPolicy"] == "Never"


def test_the_image_copies_what_is_there_and_bounds_what_it_installs(root):
    lines = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    (base,) = [rest for step, rest in steps if step == "FROM"]
    assert re.fullmatch(r"python:3\.1[123]-slim-\w+", base)
    sources = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert sources
    for name in sources:
        assert (root / name).exists(), name
    installs = [rest for step, rest in steps if step == "RUN" and "pip install" in rest]
    assert all("-r requirements.txt" in rest or "--no-deps" in rest for rest in installs)
    for line in (root / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or re.search(r">=.*,<", line), line
    assert [rest for step, rest in steps if step == "USER"] == ["cogview"]
