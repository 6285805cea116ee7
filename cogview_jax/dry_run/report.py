"""The memory, traffic and least time of a run on simulated devices."""

import math
from collections import defaultdict
from pathlib import Path

import jax

from cogview_jax.dry_run.plan import Plan, make_plan
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.hardware import Accelerator, accelerator
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.precision import policy
from cogview_jax.tasks.experiment import Experiment
from cogview_jax.tasks.run_setup import check_batch, make_task
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.optimizer import make_optimizer, schedule

#: The share of the memory of a device that programs can use.
USABLE = 0.94
#: The largest number of simulated devices.
MAX_DEVICES = 16384


def run(experiment: Experiment, devices: int | None, name: str | None) -> int:
    """Compiles the step of `experiment` and prints its plan; nothing is trained.

    Args:
        experiment: its mesh says how the devices are used. No data or workdir is needed.
        devices: the number of simulated devices. None is the number that the mesh asks for, or the
            number of present devices if an axis of the mesh is -1.
        name: the accelerator model assumed, such as "H100"; None assumes none.

    Raises:
        InputError: the mesh or the batch does not fit the devices, or the accelerator is unknown.
    """
    target = accelerator(name) if name else None
    plan = plan_run(experiment, devices)
    print(report(plan, experiment, target))
    return 0


def plan_run(experiment: Experiment, devices: int | None) -> Plan:
    """The plan of an experiment on simulated devices; see `run`."""
    count = _wanted(experiment.mesh) if devices is None else devices
    if not 1 <= count <= MAX_DEVICES:
        asked = f"--devices {count}" if devices is not None else f"a mesh of {count} devices"
        raise InputError(f"{asked}: a dry run supposes 1 to {MAX_DEVICES}")
    _simulate(count)
    here = jax.devices()[:devices] if devices else None
    mesh, config = make_mesh(experiment.mesh, here), experiment.train
    check_batch(config, mesh)
    task, types = make_task(experiment, Workdir(Path("nowhere"))), policy(experiment.precision)
    return make_plan(
        task.objective,
        make_optimizer(experiment.optimizer, config.steps),
        schedule(experiment.optimizer, config.steps),
        mesh,
        task.row_shapes(),
        global_batch=config.global_batch,
        accumulate=config.accumulate,
        loss_scale=experiment.loss_scale if types.scales else None,
        ema_decay=config.ema_decay,
        compute=types.compute,
    )


def report(plan: Plan, experiment: Experiment, target: Accelerator | None) -> str:
    """The plan as text."""
    config = experiment.train
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.devices} devices, mesh {mesh};"
        f" {config.global_batch} rows a step in {config.accumulate} parts;"
        f" {experiment.precision}",
        "",
        "each device holds                       GB",
    ]
    frozen = {"frozen parameters": plan.frozen} if plan.frozen else {}
    held = {
        "parameters": plan.parameters,
        **frozen,
        "optimizer (and codebook)": plan.moments,
        "gradients": plan.gradients,
        "activations": plan.activations,
        "temporaries (estimate)": plan.temporaries,
        "batch": plan.batch,
        "total (estimate, rather high)": plan.total,
    }
    lines += [f"  {name:32}{size / 1e9:10.3f}" for name, size in held.items()]
    lines += ["", "each device sends a step      times         GB"]
    kinds: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for one in plan.collectives:
        kinds[f"{one.kind} of {one.devices}"][0] += one.times
        kinds[f"{one.kind} of {one.devices}"][1] += one.sent
    for kind, (times, sent) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        lines.append(f"  {kind:24}{times:10}{sent / 1e9:12.4f}")
    lines.append(f"  {'total':34}{plan.sent / 1e9:12.4f}")
    if any(one.kind == "all-reduce" for one in plan.collectives):
        lines.append(
            "  (GPUs and TPUs scatter the sums of gradients kept in parts: half as much for those)"
        )
    lines += [
        "",
        f"all devices compute {plan.flops / 1e12:.4g} TFLOP a step, of which {plan.recomputed:.0%}"
        " is rematerialisation",
        f"(compiled in {plan.seconds:.0f} s)",
    ]
    if target is not None:
        lines += ["", *_verdict(plan, experiment, target)]
    return "\n".join(lines)


def fits(plan: Plan, target: Accelerator) -> bool:
    """Whether the estimate fits the memory that an accelerator leaves to programs."""
    return plan.total <= USABLE * target.memory * 1e9


def least_seconds(plan: Plan, experiment: Experiment, target: Accelerator) -> float:
    """A lower bound of the seconds of a step: its arithmetic at the peak of all devices."""
    compute = policy(experiment.precision).compute
    peak = getattr(target, jax.numpy.dtype(compute).name) * 1e12
    return plan.flops / plan.devices / peak


def _verdict(plan: Plan, experiment: Experiment, target: Accelerator) -> list[str]:
    usable = USABLE * target.memory
    need = f"{plan.total / 1e9:.1f} of {usable:.1f} GB that a {target.name} leaves to programs"
    state = plan.state / 1e9
    certain = (plan.total - plan.temporaries) / 1e9
    advice = "raise train.accumulate, or take a model.remat that keeps less"
    if fits(plan, target):
        lines = [f"fits: {need}"]
    elif certain <= usable:
        lines = [f"may fit: {need}, {certain:.1f} GB without temporaries; if not, {advice}"]
    else:
        if state > usable:
            advice = (
                "parameters, optimizer and gradients alone are too large: raise mesh.fsdp or tensor"
            )
        lines = [f"does NOT fit: {need}; {advice}"]
    seconds = least_seconds(plan, experiment, target)
    rate = experiment.train.global_batch / seconds
    lines.append(
        f"at least {seconds:.3g} s a step, at most {rate:.4g} rows a second: arithmetic at the peak"
    )
    return lines


def _wanted(mesh: MeshConfig) -> int:
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    return len(jax.devices()) if -1 in sizes else math.prod(sizes)


def _simulate(count: int) -> None:
    """Makes jax simulate `count` CPU devices, unless its backend is initialised already."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the backend is initialised
        pass
    if len(jax.devices()) < count:
        raise InputError(
            f"{count} devices cannot be simulated: this program has begun with"
            f" {len(jax.devices())}; ask for them in a program of their own (train --dry_run)"
        )
