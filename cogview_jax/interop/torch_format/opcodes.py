"""Checks the instructions of a pickle before any of them is run.

A few bytes can ask a reader for gigabytes: a high number in its memo, a run of empty sets, or
tuples within tuples, whose hash never ends. Therefore the instructions are first counted and
followed without running them. A pickle of tensors has a few dozen instructions for each tensor, and
never nests deeply.
"""

import pickletools
from typing import Any, BinaryIO

from cogview_jax.runtime.errors import InputError

#: A pickle may have so many bytes and instructions. Thousands of tensors have fewer.
BYTES, INSTRUCTIONS = 16 << 20, 400_000
#: Tuples may be nested so deeply.
DEPTH = 200

_MARK = -1
#: The result of these instructions may be, or contain, what they were given.
_HANDED_ON = (
    *("REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "BINPERSID", "APPEND", "APPENDS"),
    *("SETITEM", "SETITEMS", "ADDITEMS", "DUP"),
)
#: For each instruction: how many values it takes off the stack, whether it takes all down to the
#: mark, and how many values it puts on the stack.
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
    """Returns the next pickle of a file and its number of instructions; the file is then behind it.

    Raises:
        InputError: it is damaged, too large, or nested too deeply.
    """
    start = file.tell()
    data = file.read(BYTES)
    count, end = followed(data)
    file.seek(start + end)
    return data[:end], count


def followed(data: bytes) -> tuple[int, int]:
    """Returns the number of instructions, and where they end."""
    stack: list[int] = []  # For each value, the depth of tuples in it; or the mark.
    memo: dict[int, int] = {}
    count = end = 0
    try:
        for op, argument, place in pickletools.genops(data):
            assert place is not None  # It is None only for files, not for bytes.
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
    """Updates the depths on the stack and in the memo as an instruction would."""
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
