"""Eight fake CPU devices, a compilation cache, and the reference material."""

import gc
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from compilation import FLAGS

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
#: What the repository may not hold; a test that needs it skips where it is absent.
SHARED = ROOT.parent / "shared"

# In the environment, so that the programs a test starts share the cache and stay on the CPU too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Programs of tests are compiled more often than they are run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax  # noqa: E402  (it reads the environment above)

import command_runs  # noqa: E402

# Only here, and not in the environment: the commands that tests start see one device, as users do.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_finish():
    """Spares collections of garbage what imports have left: they took a fifth of tracing."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def reference_shapes() -> Path:
    """240 drawings of the shapes data set and their captions, made by other code than this."""
    return FIXTURES / "shapes"


@pytest.fixture(scope="session")
def fixtures_root() -> Path:
    """The folder of fixtures that are the same for everybody."""
    return FIXTURES


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Expected values of the official code (`COGVIEW_FIXTURES` may name another folder of them)."""
    folder = Path(os.environ.get("COGVIEW_FIXTURES") or FIXTURES / "official").absolute()
    if not (folder / "config.json").is_file():
        pytest.fail(f"COGVIEW_FIXTURES: no config.json in {folder}")
    return folder


@dataclass(frozen=True)
class Oracles:
    """Files of expected values that others' image tokenizers and metrics gave, by relative name."""

    folders: tuple[Path, ...]

    def __call__(self, name: str) -> Path:
        """The file; the test is skipped where none of the folders has it."""
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"needs {name}, which is in none of {', '.join(map(str, self.folders))}")


@pytest.fixture(scope="session")
def oracles(root) -> Oracles:
    """Finds oracle files, in `COGVIEW_ORACLES` alone if it is set."""
    if folder := os.environ.get("COGVIEW_ORACLES"):
        return Oracles((Path(folder).absolute(),))
    return Oracles((root / "tests" / "oracles", SHARED / "oracles"))


@pytest.fixture(scope="session")
def official_text(fixtures) -> Path:
    """The released SentencePiece model: among the fixtures or beside them, else the public one."""
    places = (fixtures, fixtures.parent, FIXTURES / "official", SHARED / "official")
    for place in places:
        if (place / "cog-pretrain.model").is_file():
            return place / "cog-pretrain.model"
    pytest.skip(
        "needs the released SentencePiece model, which may not be shipped here: put "
        f"cog-pretrain.model into {FIXTURES / 'official'} (see tests/fixtures/README.md)"
    )


@pytest.fixture(scope="session")
def chain(root, tmp_path_factory):
    """Runs of the commands that many tests look at; none may change them."""
    return command_runs.Chain(root, tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session", autouse=True)
def forking():
    """Ends the process that forks for commands, so that its time counts as that of the tests."""
    yield
    command_runs.Command.end()


@pytest.fixture
def disk(tmp_path):
    """A disk of 20 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
