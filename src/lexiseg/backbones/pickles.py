"""Validation of untrusted pickles before they are unpickled.

Both readers of weights (`state_dicts`, `array_pickles`) allow a pickle to name a few harmless functions only. That prevents
code execution, but not a small pickle that makes those functions, or the unpickler itself, allocate gigabytes or overflow
the stack.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

_DEEPEST = 32  # nesting of tuples, whose hash Python computes without a check of its stack
_MOST = 2_000_000  # instructions; weights need about forty per tensor
_WIDEST = 1 << 64  # integers; larger ones can be chosen with equal hashes, which makes dictionaries slow
_LONGEST = 100  # strings that are kept; all names of functions and encodings are shorter
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # leave the modified object on the stack
_ENCODE = "_codecs encode"


class ForeignNameError(pickle.UnpicklingError):
    """A pickle names a function or class that is not allowed."""


class _Value(NamedTuple):
    """Description of a value on the stack.

    Attributes:
        depth: nesting depth of tuples.
        text: a string, the name of a function, or the text of a tuple's last element.
        is_function: whether the value was looked up by name.
    """

    depth: int = 0
    text: str = ""
    is_function: bool = False


def check_pickle(file: IO[bytes] | Any, names: re.Pattern[str]) -> None:
    """Check a pickle without building any of its values, and advance the file to its end.

    Args:
        file: object with ``read``, ``readline`` and ``tell``, at the start of the pickle.
        names: pattern of all allowed names, as ``module name``.

    Raises:
        ForeignNameError: a name that is not allowed.
        UnpicklingError: malformed, sets attributes of a function, or needs more memory, time or stack than weights do.
            `pickletools` may raise ValueError.
    """
    with warnings.catch_warnings(action="ignore"):  # Python warns of odd escapes in texts
        _follow(pickletools.genops(file), names)


def _follow(instructions: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]], names: re.Pattern[str]) -> None:
    """Simulate the instructions of the unpickler on a stack of `_Value`."""
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
            if number > count or not taken:  # the unpickler allocates a list as long as the largest number
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
    """Pop the operands of an opcode from the stack, the values above a mark last; the mark is popped too."""
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
