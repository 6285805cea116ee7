"""What a pickle would make, looked at before anything is made.

A few bytes can ask a reader for gigabytes: a place far up in its memo, a run of empty sets, tuples
within tuples that no hash comes back from. So its instructions are counted and followed first,
without running them. Ours are a few dozen a tensor, and never nest deeply.
"""

import pickletools
from typing import Any, BinaryIO

from cogview_jax.runtime.errors import InputError

#: Of a pickle, the most bytes and instructions that are read: thousands of tensors have fewer.
BYTES, INSTRUCTIONS = 16 << 20, 400_000
#: Tuples within tuples.
DEPTH = 200

_MARK = -1
#: Instructions whose result may be, or hold, what they were given.
_HANDED_ON = (
    *("REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "BINPERSID", "APPEND", "APPENDS"),
    *("SETITEM", "SETITEMS", "ADDITEMS", "DUP"),
)
#: name -> how much it takes off the stack, whether up to the mark, and how much it puts there.
_RUN = (pickletools.markobject, pickletools.stackslice)
_EFFECTS = {
    op.name: (
        sum(taken not in _RUN for taken in op.stack_before),
        pickletools.markobject in op.stack_before,
        len(op.stack_after),
    )
    for op in pickletools.opcodes
}


def examined(file: BinaryIO) -> tuple[bytes, int]:
    """The next pickle of a file, which then stands behind it, and how many instructions it has.

    Raises:
        InputError: it is damaged, or larger or deeper than what this program reads.
    """
    start = file.tell()
    data = file.read(BYTES)
    count, end = _follow(data)
    file.seek(start + end)
    return data[:end], count


def _follow(data: bytes) -> tuple[int, int]:
    """How many instructions there are, and where they end."""
    stack: list[int] = []  # how many tuples are within each value, or the mark
    memo: dict[int, int] = {}
    count = end = 0
    try:
        for op, argument, place in pickletools.genops(data):
            assert place is not None  # pickletools knows it wherever it reads bytes
            name, end = op.name, place + 1
            count += 1
            if count > INSTRUCTIONS:
                raise InputError(f"its pickle has more than {INSTRUCTIONS} instructions")
            _apply(name, argument, stack, memo)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        size = f", or larger than {BYTES} bytes" * (len(data) == BYTES)
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"its pickle cannot be read{size} ({reason})") from error
    return count, end


def _apply(name: str, argument: Any, stack: list[int], memo: dict[int, int]) -> None:
    """What an instruction does to the depths on the stack and in the memo."""
    if name in ("PUT", "BINPUT", "LONG_BINPUT"):
        if argument > 2 * INSTRUCTIONS:
            raise InputError(f"its pickle keeps a value under number {argument}")
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "MARK":
        stack.append(_MARK)
    else:
        taken, marked, put = _EFFECTS[name]
        deepest = 0
        if marked:
            while (depth := stack.pop()) != _MARK:
                deepest = max(deepest, depth)
        for _ in range(taken):
            deepest = max(deepest, stack.pop())
        if name.startswith("TUPLE"):
            deepest += 1
            if deepest > DEPTH:
                raise InputError(f"its pickle has more than {DEPTH} tuples within tuples")
        elif name not in _HANDED_ON:
            deepest = 0
        stack.extend([deepest] * put)
