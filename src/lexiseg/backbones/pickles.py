"""Pickles of strangers, looked at before anything unpickles them.

Both readers of weights (`state_dicts`, `array_pickles`) let a pickle name a few harmless functions only. That stops code, but
not a pickle of a few bytes that asks those functions, or the unpickler itself, for gigabytes, or overflows Python's stack.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

_DEEPEST = 32  # tuples within tuples; Python computes the hash of such without looking at its stack
_MOST = 2_000_000  # instructions; weights need about forty a tensor
_WIDEST = 1 << 64  # whole numbers; larger ones can be chosen to have the same hash, which makes dictionaries slow
_LONGEST = 100  # texts that are remembered; all names of functions and encodings are shorter
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # what they change stays on the stack
_ENCODE = "_codecs encode"


class ForeignNameError(pickle.UnpicklingError):
    """A pickle names what no weights need."""


class _Value(NamedTuple):
    """What is known of a value on the stack.

    Attributes:
        depth: tuples within tuples.
        text: a string, the name of a function, or of a tuple the text of its last item.
        is_function: whether it is what a name stands for.
    """

    depth: int = 0
    text: str = ""
    is_function: bool = False


def check_pickle(file: IO[bytes] | Any, names: re.Pattern[str]) -> None:
    """Go through a pickle without making any of its values; afterwards the file stands behind it.

    Args:
        file: with ``read``, ``readline`` and ``tell``, at the start of the pickle.
        names: pattern of all that it may name, as ``module name``.

    Raises:
        ForeignNameError: it names something else.
        UnpicklingError: it is not well-formed, sets attributes of a function, or would need more memory, time or stack than
            weights do. `pickletools` raises ValueError, too.
    """
    with warnings.catch_warnings(action="ignore"):  # Python warns of odd escapes in texts
        _follow(pickletools.genops(file), names)


def _follow(instructions: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]], names: re.Pattern[str]) -> None:
    """Do to a stack of `_Value` what the instructions would do to the unpickler's."""
    stack: list[_Value | None] = []  # None is a mark
    memo: dict[int, _Value] = {}
    for count, (opcode, argument, _) in enumerate(instructions):
        name = opcode.name
        if count > _MOST:
            raise pickle.UnpicklingError("more values than weights have")
        if isinstance(argument, int) and abs(argument) >= _WIDEST:
            raise pickle.UnpicklingError("a whole number of more than 64 bits")
        if name == "MARK":
            stack.append(None)
            continue
        taken = _take(stack, opcode)
        if name in {"GLOBAL", "INST", "STACK_GLOBAL"}:
            text = argument if argument is not None else f"{taken[0].text} {taken[1].text}"
            if not names.fullmatch(text):
                raise ForeignNameError(text.replace(" ", "."))
            stack.append(_Value(text=text, is_function=name != "INST"))
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            if argument not in memo:
                raise pickle.UnpicklingError("a value that was never made")
            stack.append(memo[argument])
        elif name in {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}:
            number = len(memo) if argument is None else argument
            if number > count or not taken:  # the unpickler makes a list as long as the largest number
                raise pickle.UnpicklingError("a value with a number that is too large")
            memo[number] = taken[0]
            stack.append(taken[0])
        elif name in _TUPLES:
            depth = 1 + max((value.depth for value in taken), default=0)
            if depth > _DEEPEST:
                raise pickle.UnpicklingError("tuples too deep in each other")
            stack.append(_Value(depth, taken[-1].text if taken else ""))
        elif name in _CHANGES:
            if name == "BUILD" and taken[0].is_function:
                raise pickle.UnpicklingError("a function whose attributes are set")
            stack.append(taken[0])
        elif name == "REDUCE" and taken[0].text == _ENCODE and taken[1].text != "latin1":
            raise pickle.UnpicklingError("bytes that are not written as latin1")  # some encodings take minutes
        elif name == "DUP":
            stack += taken * 2
        else:
            text = argument if isinstance(argument, str) and len(argument) <= _LONGEST else ""
            stack += [_Value(text=text) for _ in opcode.stack_after]


def _take(stack: list[_Value | None], opcode: pickletools.OpcodeInfo) -> list[_Value]:
    """Take from the stack what an opcode takes; a mark goes, too, and what is above it comes last."""
    before = list(opcode.stack_before)
    if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}:
        before = [pickletools.anyobject]
    above: list[_Value] = []
    if pickletools.markobject in before:
        before = before[: before.index(pickletools.markobject)]
        while stack and (value := stack.pop()) is not None:
            above.append(value)
        above.reverse()
    below = [stack.pop() for _ in before if stack][::-1]
    if len(below) < len(before) or None in below:
        raise pickle.UnpicklingError("less on the stack than is taken from it")
    return [value for value in below if value is not None] + above
