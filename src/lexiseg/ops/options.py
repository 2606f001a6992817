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
    "from_document", "options", "readings", "to_document", "with_settings", "with_value", "without_paths",
]  # fmt: skip

Positive = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Depth = Annotated[int, Ge(1), Le(1000)]
"""Number of layers, or of anything else a constructor loops over."""
Width = Annotated[int, Ge(1), Le(2**16)]
"""Number of channels."""
Unit = Annotated[float, Ge(0), Le(1)]
NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]

_RULES = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, arbitrary_types_allowed=True
)
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None}
LONGEST = 10_000  # maximum characters of a literal
_BOUNDS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
Options = TypeVar("Options")

if TYPE_CHECKING:
    from dataclasses import dataclass as options
else:

    def options(cls: type | None = None, *, frozen: bool = True) -> Any:
        """Class decorator: a dataclass whose values are validated by its constructor, see the module's docstring."""
        if cls is None:
            return functools.partial(options, frozen=frozen)
        decorated = validated(cls, frozen=frozen, config=_RULES)
        initialise = decorated.__init__

        @functools.wraps(initialise)
        def checked(self: Any, *values: Any, **named: Any) -> None:
            try:
                initialise(self, *values, **named)
            except ValidationError as error:
                raise UsageError(_message(decorated, error)) from None

        decorated.__init__ = checked
        return decorated


@dataclass(frozen=True)
class Option:
    """Description of an option.

    Attributes:
        name: dotted name, as in `with_settings`.
        type: its type in words.
        value: current value.
        about: documentation, one paragraph.
    """

    name: str
    type: str
    value: Any
    about: str


def describe(node: Any, prefix: str = "") -> Iterator[Option]:
    """Iterate over all options of an instance, nested ones by dotted names, in the order of their definition."""
    hints = get_type_hints(type(node), include_extras=True)
    for entry in fields(node):
        value, name = getattr(node, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            yield from describe(value, f"{name}.")
        elif isinstance(value, tuple) and value and all(map(is_dataclass, value)):
            for index, inner in enumerate(value):
                yield from describe(inner, f"{name}.{index}.")
        else:
            yield Option(name, _type(hints[entry.name]), value, _about(type(node), entry.name))


def flat(node: Any) -> dict[str, Any]:
    """Return all values of an instance by dotted name; keys of mappings are part of the name, and paths are strings."""
    rows: dict[str, Any] = {}
    for option in describe(node):
        if isinstance(option.value, Mapping) and option.value:
            rows |= {f"{option.name}.{key}": value for key, value in option.value.items()}
        else:
            rows[option.name] = str(option.value) if isinstance(option.value, Path) else option.value
    return rows


def to_document(node: Any) -> dict[str, Any]:
    """Convert an instance to a JSON object."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(node), default=str))
    return document


def from_document(cls: type[Options], document: Mapping[str, Any]) -> Options:
    """Build an instance from the output of `to_document`.

    Raises:
        UsageError: unknown names or invalid values.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(document))
    except ValidationError as error:
        raise UsageError(_message(cls, error)) from None


def without_paths(node: Options) -> Options:
    """Return a copy in which all options that are paths are None: paths are of a machine, not of weights."""
    for option in list(describe(node)):
        if isinstance(option.value, Path):
            node = _with(node, option.name.split("."), None)
    return node


def with_settings(node: Options, settings: Sequence[str], *, owner: str, shorter: Sequence[str] = ()) -> Options:
    """Return a copy of options with some values changed.

    Args:
        node: the options, which are not modified.
        settings: each ``name=value``; the value is a Python literal, a word, or comma-separated words.
        owner: name of the options' owner in messages.
        shorter: prefixes of names that may be omitted.

    Raises:
        UsageError: an unknown name or an invalid value.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"'{setting}' is not a setting: write NAME=VALUE, such as {next(iter(flat(node)))}=…")
        node = with_value(node, name.strip(), *readings(text.strip()), owner=owner, shorter=shorter)
    return node


def with_value(node: Options, name: str, *readings: Any, owner: str, shorter: Sequence[str] = ()) -> Options:
    """Return a copy of options with one value changed to the first valid one of ``readings``; see `with_settings`."""
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
    message = str(refused)
    where = f"{holder}." if holder and message.startswith(leaf) else "" if message.startswith(leaf) else f"{full}: "
    raise UsageError(f"{owner}: {where}{message}") from None


def _about(cls: type, name: str) -> str:
    """Return the documentation of a field, which may be in a base class."""
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
    """Whether ``name`` is a nested instance, which can be set to None if its type allows it."""
    for part in name.split("."):
        if not is_dataclass(node) or part not in {entry.name for entry in fields(node)}:
            return False
        node = getattr(node, part)
    return True


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def _with(node: Any, path: Sequence[str], value: object) -> Any:
    """Return a copy of a tree of dataclasses, tuples and mappings with one leaf replaced."""
    if not path:
        if is_dataclass(node) and not (value is None or is_dataclass(value)):
            names = ", ".join(entry.name for entry in fields(node))
            raise UsageError(f"it is a group of options; set one of {names}")
        return value
    name, *rest = path
    if isinstance(node, tuple):
        index = int(name)
        return (*node[:index], _with(node[index], rest, value), *node[index + 1 :])
    if isinstance(node, Mapping):
        return {**node, name: _with(node.get(name), rest, value)}
    return dataclasses.replace(node, **{name: _with(getattr(node, name), rest, value)})


def readings(value: Any) -> list[Any]:
    """Return possible values of a text, most likely first: a Python literal, the text, comma-separated words, a path."""
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    literal: list[Any] = [_WORDS[text.lower()]] if text.lower() in _WORDS else []
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        literal += [ast.literal_eval(text)] if len(text) < LONGEST else []
    parts = tuple(readings(part)[0] for part in text.split(",") if part.strip()) if "," in text else (*literal, text)[:1]
    return [*literal, text, parts, Path(text)]


def _tuples(value: Any) -> Any:
    """Convert lists to tuples, recursively."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _type(hint: Any) -> str:
    """Describe a type in words: ``int ≥ 1``, ``"paper" or "official"``."""
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


def _message(cls: type, error: ValidationError) -> str:
    """Format the first invalid value of a validation error, and what it may be, in one line."""
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
