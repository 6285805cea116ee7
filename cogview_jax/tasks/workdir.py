"""The folder of a run: the config that it belongs to, and the names of its files."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from cogview_jax.data.sources.source import SourceConfig
from cogview_jax.runtime.config import as_settings
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import check_folder_output, read_json, write_json
from cogview_jax.runtime.folder_share import FolderShare
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.paths import local_path
from cogview_jax.runtime.processes import barrier, host_name
from cogview_jax.tasks.experiment import Experiment, read_experiment

#: Settings that may differ when a run is resumed: devices, length, and what it reports and keeps.
#: model.unroll and model.remat are not among them: though they change no value on paper, another
#: program rounds otherwise (float32 weights by 1e-7 in a step), and the same devices are to give
#: the same run.
RESUMABLE = (
    *("train.steps", "train.log_every", "train.checkpoint_every", "train.sample_every"),
    *("train.keep", "train.keep_every", "train.keep_best", "train.best_metric"),
    *("train.bundle_weights", "train.bundle_step"),
    *("train.validate_every", "train.validation_images", "train.validation_lpips"),
    *("train.validation_records", "train.stop_after", "train.sample_prompts"),
    *("train.benchmark", "train.benchmark_every", "train.benchmark_prompts"),
    *("implementation.attention", "implementation.decoding"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "profile.after", "profile.steps", "data.from"),
    *("sampling.temperature", "sampling.top_k", "sampling.top_p", "sampling.guidance"),
    "sampling.parallel_window",
    *("data.source.index", "data.source.remote.requests", "data.source.remote.cache"),
    "data.source.remote.cache_gb",
)
#: Paths that may differ if what they hold is the same (`tasks.contents`).
PATHS = (
    *("data.source.path", "data.store", "data.image_tokenizer", "data.text_tokenizer"),
    *("data.filter.exclude", "init_from"),
)
#: Of a part of a mixture: the name of a setting in `RESUMABLE` or `PATHS` is that of all of them.
_PART = re.compile(r"data\.(?:source\.parts\.\w+\.(source(?:\.\w+)+)|mixture\.\w+\.(store))")


class Workdir:
    """DIR/config.json, contents.json, checkpoints/, metrics/, samples/, and when done bundle/.

    Some runs also have damaged/ (checkpoints), skipped.jsonl (records) or profile/, and where
    `prepare` was finished prepared.json, the settings that it had.
    """

    def __init__(
        self, path: str | Path, share: FolderShare | None = None, *, shown: str | None = None
    ):
        """Names the files of the run in `path` and makes none of them.

        Args:
            path: the folder.
            share: which processes of the run see it; all see the same one by default.
            shown: what the user calls it, if not by its path.
        """
        self.path = local_path(path, "--workdir").absolute()
        self.shown = str(self.path) if shown is None else shown
        self._share = share
        #: Brings all of a checkpoint, by its step, to hosts that have folders of their own.
        self.complete: Callable[[int], None] | None = None
        self.config = self.path / "config.json"
        self.prepared = self.path / "prepared.json"
        self.contents = self.path / "contents.json"
        self.checkpoints = self.path / "checkpoints"
        self.damaged = self.path / "damaged"
        self.metrics = self.path / "metrics"
        self.samples = self.path / "samples"
        self.profile = self.path / "profile"
        self.bundle = self.path / "bundle"

    @property
    def share(self) -> FolderShare:
        """Which processes of the run see the folder; asked once they are connected."""
        return self._share or FolderShare.of_all()

    def named(self, text: object) -> str:
        """A line or a path in which the folder has the name that the user knows."""
        return str(text).replace(str(self.path), self.shown)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder in the block; every process of this run enters it.

        Raises:
            InputError: another run is at work there, or it is a file.
        """
        check_folder_output(self.path, "--workdir")
        if not self.share.leads:
            yield
            return
        lock, what = self.path / ".train.lock", f"the workdir {self.path}"
        with locked(lock, what, "choose another --workdir"):
            yield

    def check(self, experiment: Experiment) -> dict[str, tuple[str, str]]:
        """Refuses a folder that is not this experiment's.

        Returns:
            The settings of `PATHS` that differ, whose contents `check_contents` has to compare:
            what they were and what they are.

        Raises:
            InputError: the folder holds a run of another config; the message names what differs.
        """
        if not self.config.exists():
            return {}
        found = resolved_settings(read_settings(self.config))
        there, here = dict(flat_settings(found)), dict(flat_settings(resolved_settings(experiment)))
        names = sorted(name for name in {*there, *here} if _without_part(name) not in RESUMABLE)
        known, moved = self._known(), {}
        for name in sorted(names, key=lambda name: not name.endswith(".kind")):  # says the most
            if there.get(name) == here.get(name):
                continue
            if _without_part(name) in PATHS and name in known:
                moved[name] = there[name], here[name]
            else:
                raise InputError(
                    f"{self.path} holds a run with {name} = {there.get(name)!r}, but the config"
                    f" says {here.get(name)!r}: choose another --workdir, or the same config"
                )
        return moved

    def check_contents(
        self, moved: Mapping[str, tuple[str, str]], contents: Mapping[str, str]
    ) -> None:
        """Refuses other contents under other paths.

        Args:
            moved: from `check`.
            contents: setting -> the hash of what it names now.

        Raises:
            InputError: one holds something else: both paths, and the hashes of what they hold.
        """
        known = self._known()
        for name, (was, now) in moved.items():
            if (digest := contents.get(name, "nothing known")) != known[name]:
                raise InputError(
                    f"{self.path} holds a run with {name} = {was!r} (content {known[name][:12]}),"
                    f" but the config says {now!r}, which holds something else ({digest[:12]}):"
                    " choose another --workdir, or name the same content"
                )

    def _known(self) -> dict[str, str]:
        """The hashes of contents that `claim` has noted."""
        return read_json(self.contents) if self.contents.exists() else {}

    def claim(self, experiment: Experiment, contents: Mapping[str, str] = {}) -> None:
        """Writes config.json: from now on the folder is this experiment's.

        Every process of a run calls it once all else is checked. `contents` is as for
        `check_contents`, and is noted.

        Raises:
            InputError: a process does not see the file that process 0 wrote.
        """
        if self.share.leads:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path, owned=True)
            write_json(self.config, resolved_settings(experiment))
            write_json(self.contents, self._known() | dict(contents))
        barrier("workdir claimed")
        if not self.config.exists():
            raise InputError(
                f"process {jax.process_index()} on {host_name()} does not see {self.config}, which"
                " process 0 wrote: --workdir must be on a file system that all hosts share, or in a"
                " bucket"
            )


def _without_part(name: str) -> str:
    """The setting of a part of a mixture as it is called where there is no mixture."""
    found = _PART.fullmatch(name)
    return f"data.{found[1] or found[2]}" if found else name


def resolved_settings(experiment: Experiment) -> dict[str, Any]:
    """Every setting, as JSON has them."""
    return json.loads(json.dumps(as_settings(experiment)))


def read_settings(file: Path) -> Experiment:
    """The experiment that `resolved_settings` were written of; newer settings have their defaults.

    Raises:
        InputError: the file is damaged, or has settings that this version does not know.
    """
    try:
        return read_experiment(_without_foreign(read_json(file)))
    except InputError as error:
        if str(error).startswith(str(file)):
            raise
        raise InputError(f"{file} is of another program or version: {error}") from error


def _without_foreign(config: Any) -> Any:
    """`config` without settings that only other kinds of sources have.

    A config.json has them if it was written before each kind had its own settings.
    """
    try:
        source = dict(config["data"]["source"])
        foreign = SourceConfig.foreign(source["kind"])
    except (KeyError, TypeError, ValueError):  # `read_experiment` reports it
        return config
    own = {name: value for name, value in source.items() if name not in foreign}
    return config | {"data": config["data"] | {"source": own}}


def flat_settings(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
