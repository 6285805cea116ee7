"""The collective operations of a compiled program, read from its text."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16, "token": 0}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_COLLECTIVE = re.compile(rf"^({'|'.join(KINDS)})(-start)?$")


@dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        devices: how many devices take part together.
        bytes: of the whole array that is gathered, reduced or sent, as one device sees it.
        times: how often the operation runs in one call of the program.
        dtype: XLA's name for the type of the array; of the largest, where several are sent.
    """

    kind: str
    devices: int
    bytes: int
    times: int
    dtype: str = "f32"

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a call, if the devices pass parts around a ring.

        An all-gather or a reduce-scatter sends all parts but one. An all-reduce does both.
        """
        share = (self.devices - 1) / self.devices
        rounds = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * self.bytes * rounds


def collectives(program: str) -> list[Collective]:
    """All collectives of a compiled program (`compiled.as_text()`) that has been partitioned.

    Raises:
        ValueError: a loop that holds some does not say how often it runs.
    """
    computations, entry = _computations(program)
    return list(_found(computations, entry, 1))


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the entry computation."""
    found: dict[str, list[str]] = {}
    current, entry = [], ""
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            current = found.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        else:
            current.append(line)
    return found, entry


def _found(computations: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    for line in computations[name]:
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        shape, operation = match.groups()
        if kind := _COLLECTIVE.match(operation):
            yield _collective(line, shape, kind[1], bool(kind[2]), times)
        elif operation == "while":
            body = _search(r"body=%?([\w.\-]+)", line)
            count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            inner = list(_found(computations, body, times * int(count[1]) if count else times))
            if inner and not count:
                raise ValueError(f"a loop does not say how often it runs: {line.strip()[:200]}")
            yield from inner
        elif operation in ("call", "conditional", "async-start"):
            for called in re.findall(r"(?:to_apply|calls|computation)=%?([\w.\-]+)", line):
                yield from _found(computations, called, times)
            if branches := re.search(r"branch_computations=\{(.*?)\}", line):
                for called in re.findall(r"%?([\w.\-]+)", branches[1]):
                    yield from _found(computations, called, times)


def _collective(line: str, shape: str, kind: str, started: bool, times: int) -> Collective:
    arrays = [
        (_bytes(dtype, sizes), dtype) for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    ]
    # The -start half of an asynchronous operation returns its operands before its results.
    if started and kind != "all-reduce":
        arrays = arrays[1:2]
    size, dtype = sum(size for size, _ in arrays), max(arrays)[1]
    devices = _group_size(line)
    if kind == "reduce-scatter":
        size *= devices  # what comes out is a part
    return Collective(kind, devices, size, times, dtype)


def _search(pattern: str, text: str) -> str:
    """The first group of a pattern; ValueError where the text does not have it."""
    if match := re.search(pattern, text):
        return match[1]
    raise ValueError(f"{pattern} is not in: {text.strip()[:200]}")


def _bytes(dtype: str, dimensions: str) -> int:
    bits = _BITS[dtype] if dtype in _BITS else int(_search(r"(\d+)", dtype))
    return math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8


def _group_size(line: str) -> int:
    """The number of devices in a group, which XLA writes in one of four ways."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return len(match[1].split("},"))
    raise ValueError(f"a collective without groups: {line.strip()[:200]}")
