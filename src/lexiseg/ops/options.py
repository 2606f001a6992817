"""Options: frozen dataclasses whose values are checked, documented and set by name.

    @options(frozen=True)
    class Jitter:
        side: Annotated[int, Ge(1)] = 1024
        \"\"\"Side of the square in pixels.\"\"\"

A wrong type, a value out of range or an unknown name is a `UsageError` of one line. `with_settings` changes values by their
dotted names, ``jitter.side=512``, as the command line does; `describe` lists them; `to_document` and `from_document` are the
form in which they are stored beside weights.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from lexiseg.errors import UsageError

__all__ = [
    "Depth", "Natural", "NonNegative", "Option", "Positive", "PositiveFloat", "Unit", "Width", "describe", "flat",
    "from_document", "options", "readings", "to_document", "with_settings", "with_value",
]  # fmt: skip

Positive = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Depth = Annotated[int, Ge(1), Le(1000)]
"""Layers, or anything else a constructor loops over."""
Width = Annotated[int, Ge(1), Le(2**16)]
"""Channels."""
Unit = Annotated[float, Ge(0), Le(1)]
NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]

_RULES = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, arbitrary_types_allowed=True
)
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None}
LONGEST = 10_000  # characters of a literal
_BOUNDS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
Options = TypeVar("Options")

if TYPE_CHECKING:
    from dataclasses import dataclass as options
else:

    def options(cls: type | None = None, *, frozen: bool = True) -> Any:
        """Class decorator: a dataclass whose values are checked when it is made, see the module's docstring."""
        if cls is None:
            return functools.partial(options, frozen=frozen)
        made = validated(cls, frozen=frozen, config=_RULES)
        initialise = made.__init__

        @functools.wraps(initialise)
        def checked(self: Any, *values: Any, **named: Any) -> None:
            try:
                initialise(self, *values, **named)
            except ValidationError as error:
                raise UsageError(_told(made, error)) from None

        made.__init__ = checked
        return made


@dataclass(frozen=True)
class Option:
    """A value that can be set.

    Attributes:
        name: dotted, as `with_settings` takes it.
        type: what it may be, in words.
        value: what it is now.
        about: its documentation, one paragraph.
    """

    name: str
    type: str
    value: Any
    about: str


def describe(node: Any, prefix: str = "") -> Iterator[Option]:
    """All options of an instance, nested ones by dotted names, in the order of their definition."""
    hints = get_type_hints(type(node), include_extras=True)
    for entry in fields(node):
        value, name = getattr(node, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            yield from describe(value, f"{name}.")
        elif isinstance(value, tuple) and value and all(map(is_dataclass, value)):
            for number, inner in enumerate(value):
                yield from describe(inner, f"{name}.{number}.")
        else:
            yield Option(name, _type(hints[entry.name]), value, _about(type(node), entry.name))


def flat(node: Any) -> dict[str, Any]:
    """All values of an instance by dotted name, a key of a mapping being a further part of the name."""
    rows: dict[str, Any] = {}
    for option in describe(node):
        if isinstance(option.value, Mapping) and option.value:
            rows |= {f"{option.name}.{key}": value for key, value in option.value.items()}
        else:
            rows[option.name] = option.value
    return rows


def to_document(node: Any) -> dict[str, Any]:
    """An instance as a JSON object."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(node), default=str))
    return document


def from_document(cls: type[Options], document: Mapping[str, Any]) -> Options:
    """The reverse of `to_document`.

    Raises:
        UsageError: unknown names, or values that do not fit.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(document))
    except ValidationError as error:
        raise UsageError(_told(cls, error)) from None


def with_settings(node: Options, settings: Sequence[str], *, owner: str, shorter: Sequence[str] = ()) -> Options:
    """The same options with some values changed.

    Args:
        node: stays as it is.
        settings: each ``name=value``; the value is a Python literal, a word, or words with commas between them.
        owner: whose options they are, for messages.
        shorter: prefixes that may be left out.

    Raises:
        UsageError: an unknown name, with what comes close, or a value that does not fit.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"'{setting}' is no setting: write NAME=VALUE, such as {next(iter(flat(node)))}=…")
        node = with_value(node, name.strip(), *readings(text.strip()), owner=owner, shorter=shorter)
    return node


def with_value(node: Options, name: str, *readings: Any, owner: str, shorter: Sequence[str] = ()) -> Options:
    """The same options with one value changed to the first of ``readings`` that fits; see `with_settings`."""
    full = _resolved(node, name, owner, shorter)
    refused: UsageError | None = None
    for value in readings:
        try:
            changed: Options = _with(node, full.split("."), _tuples(value))
        except UsageError as error:
            refused = refused or error
        else:
            return changed
    holder, leaf = full.rpartition(".")[0::2]
    said = str(refused)
    where = f"{holder}." if holder and said.startswith(leaf) else "" if said.startswith(leaf) else f"{full}: "
    raise UsageError(f"{owner}: {where}{said}") from None


def _about(cls: type, name: str) -> str:
    """The documentation of a field, which may stand in a base class."""
    known = (base.__dict__.get("__pydantic_fields__", {}) for base in cls.__mro__)
    texts = (entries[name].description for entries in known if name in entries)
    return " ".join((next(filter(None, texts), None) or "").split())


def _resolved(node: Any, name: str, owner: str, shorter: Sequence[str]) -> str:
    known = {option.name: option.value for option in describe(node)}
    short = {full.removeprefix(prefix): full for prefix in shorter for full in known if full.startswith(prefix)}
    for full in (short.get(name, name), *(f"{prefix}{name}" for prefix in shorter)):
        if full in known or (_holder(full) in known and isinstance(known[_holder(full)], Mapping)) or _is_group(node, full):
            return full
    names = sorted({*known, *short})
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(short or known)}"
    raise UsageError(f"{owner} has no option '{name}': {hint}")


def _is_group(node: Any, name: str) -> bool:
    """Whether ``name`` is a nested instance, which may be set to None where its type allows it."""
    for part in name.split("."):
        if not is_dataclass(node) or part not in {entry.name for entry in fields(node)}:
            return False
        node = getattr(node, part)
    return True


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def _with(node: Any, path: Sequence[str], value: object) -> Any:
    """The same tree of dataclasses, tuples and mappings with another leaf."""
    if not path:
        if is_dataclass(node) and not (value is None or is_dataclass(value)):
            names = ", ".join(entry.name for entry in fields(node))
            raise UsageError(f"it is a group of options; set one of {names}")
        return value
    name, *rest = path
    if isinstance(node, tuple):
        number = int(name)
        return (*node[:number], _with(node[number], rest, value), *node[number + 1 :])
    if isinstance(node, Mapping):
        return {**node, name: _with(node.get(name), rest, value)}
    return dataclasses.replace(node, **{name: _with(getattr(node, name), rest, value)})


def readings(value: Any) -> list[Any]:
    """What a value may stand for, the likeliest first: text is a Python literal, a word, or words with commas between them."""
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    literal: list[Any] = [_WORDS[text.lower()]] if text.lower() in _WORDS else []
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        literal += [ast.literal_eval(text)] if len(text) < LONGEST else []
    parts = tuple(readings(part)[0] for part in text.split(",") if part.strip()) if "," in text else (*literal, text)[:1]
    return [*literal, text, parts, Path(text)]


def _tuples(value: Any) -> Any:
    """Lists as tuples, inside too."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _type(hint: Any) -> str:
    """A type in words: ``int ≥ 1``, ``"paper" or "official"``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [
            f"{sign} {getattr(bound, key):g}" for bound in inner[1:] for kind, key, sign in _BOUNDS if isinstance(bound, kind)
        ]
        return f"{_type(inner[0])} {' and '.join(bounds)}".rstrip()
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " or ".join("None" if part is type(None) else _type(part) for part in inner)
    if origin is tuple:
        return f"{_type(inner[0])}, …" if inner[1:] == (...,) else f"({', '.join(map(_type, inner))})"
    if origin is not None and issubclass(origin, Mapping):
        return f"{_type(inner[1])} by name"
    return "text" if hint is str else "path" if hint is Path else getattr(hint, "__name__", str(hint))


def _told(cls: type, error: ValidationError) -> str:
    """A validation error in a line: the first value that does not fit, and what it may be."""
    first = error.errors(include_url=False)[0]
    path = [part for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    name = ".".join(map(str, path))
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = [entry.name for entry in fields(cls)]
        close = get_close_matches(name, names, n=3, cutoff=0.5)
        return f"there is no option '{name}'; " + (
            f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        )
    if first["type"] in ("missing", "missing_argument"):
        return f"the option '{name}' is missing"
    if "error" in first.get("ctx", {}):  # raised by the class itself
        return str(first["ctx"]["error"])
    hint = get_type_hints(cls, include_extras=True).get(name)
    wanted = first["msg"].removeprefix("Input should ") if hint is None else f"be {_type(hint)}"
    return f"{name or cls.__name__} must {wanted}, not {first['input']!r:.60}"
