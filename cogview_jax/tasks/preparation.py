"""From captioned images to a token store, which holds the tokenizers that made it."""

import importlib.util
from pathlib import Path

from cogview_jax.data.token_writer import write_store
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import write_json
from cogview_jax.tasks.begun_store import begin, kept, report
from cogview_jax.tasks.experiment import TransformerExperiment
from cogview_jax.tasks.stored_tokens import store_path
from cogview_jax.tasks.workdir import Workdir, resolved_settings


def prepare_run(experiment: TransformerExperiment, workdir: Workdir, engine: str = "local") -> None:
    """Fills the token store of a run, and leaves in its workdir the settings that it has now.

    Raises:
        InputError: as `prepare`; there is no Ray; or the run has a mixture of stores, which are
            there already.
    """
    if experiment.data.mixture:
        raise InputError(
            f"data.mixture names token stores ({', '.join(experiment.data.mixture)}), which each"
            " have a prepare of their own: there is nothing to prepare, train on it as it is"
        )
    path = store_path(experiment.data, workdir)
    shown = workdir.named(path)
    if engine == "local":
        prepare(experiment, path, shown)
    elif importlib.util.find_spec("ray") is None:
        raise InputError(
            "--engine=ray needs Ray: install it on every node with `pip install"
            " 'cogview-jax[ray]'`, or choose --engine=local, which many machines can run too"
        )
    else:
        from cogview_jax.tasks import ray_engine

        ray_engine.prepare(experiment, path, shown)
    write_json(workdir.prepared, resolved_settings(experiment))


def prepare(experiment: TransformerExperiment, path: Path, shown: str = "") -> None:
    """Fills the token store at `path`, together with all processes that do so at the time.

    It goes on where earlier ones have stopped. Where the user calls the store by another name it is
    `shown`.

    Raises:
        InputError: the data, the codec or the text tokenizer does not fit the config, or too many
            records cannot be read.
    """
    begun = begin(experiment, path)
    worked = at_work(kept(shown or path))(write_store)(begun.shards, begun.writer, begun.meta)
    report(shown or path, worked=worked, cut=begun.cut_captions())
