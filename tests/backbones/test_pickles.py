"""Pickles are looked at before anything unpickles them: what weights need passes, all else is refused before it costs much."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lexiseg.backbones import pickles
from lexiseg.backbones.array_pickles import read_arrays
from lexiseg.backbones.pickles import ForeignNameError, check_pickle
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import WeightsError

ANY = re.compile(r".+")
NONE = re.compile(r"(?!)")
MANY = 100_000  # tuples within tuples: their hash overflows the stack of the process


def call(name: str, argument: bytes) -> bytes:
    """Instructions that call a function with one argument."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n" + argument + b"\x85R"


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def entry(value: bytes) -> bytes:
    """A pickle of a dictionary with one value."""
    return b"\x80\x02}" + text("a") + value + b"s."


@pytest.mark.parametrize("protocol", range(6))
def test_what_pickle_writes_is_well_formed(protocol: int) -> None:
    shared = (1, "x", None)
    document = OrderedDict(
        a=[shared, shared, {"b": (shared, (2.5, b"y" * 300))}],
        c=frozenset({1, 2}),
        d={3, 4},
        e=np.arange(6).reshape(2, 3),
        f=np.float32(1),
        g=-(2**63),
        h="é" * 300,
        i=bytearray(b"z"),
    )
    data = pickle.dumps(document, protocol)
    file = io.BytesIO(data + b"behind")
    check_pickle(file, ANY)
    assert file.read() == b"behind"


def test_odd_escapes_are_no_warning() -> None:
    check_pickle(io.BytesIO(b"S'\\z'\n."), ANY)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_names_are_refused_wherever_they_stand(protocol: int) -> None:
    data = pickle.dumps([1, {"a": (OrderedDict,)}], protocol)
    check_pickle(io.BytesIO(data), re.compile("collections OrderedDict"))
    with pytest.raises(ForeignNameError, match=r"^collections\.OrderedDict$"):
        check_pickle(io.BytesIO(data), NONE)
    with pytest.raises(ForeignNameError, match=r"^os\.system$"):
        check_pickle(io.BytesIO(b"(S'x'\nios\nsystem\n."), NONE)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x02}r\xff\xff\xff\x07.", "a number that is too large"),
        (b"}p9999999\n.", "a number that is too large"),
        (entry(b")" + b"\x85" * MANY), "tuples too deep"),
        (entry(b")q\x01" + b"h\x01\x85q\x01" * MANY), "tuples too deep"),
        (entry(b"(" * MANY + b"t" * MANY), "tuples too deep"),
        (entry(b"\x8a\x09" + b"\x01" * 9), "more than 64 bits"),
        (b"L" + b"9" * 30 + b"L\n.", "more than 64 bits"),
        (b"ccollections\nOrderedDict\n}b.", "a function whose attributes are set"),
        (entry(b"c_codecs\nencode\n" + text("x") + text("punycode") + b"\x86R"), "not written as latin1"),
        (entry(b"c_codecs\nencode\nq\1" + text("idna") + b"q\x020h\1" + text("x") + b"h\2\x86R"), "not written as latin1"),
        (b"h\x07.", "never made"),
        (b"}s.", "less on the stack"),
        (b"(\x85.", "less on the stack"),
    ],
)  # fmt: skip
def test_what_would_cost_memory_time_or_the_stack_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=said):
        check_pickle(io.BytesIO(data), ANY)


def test_a_pickle_has_as_many_values_as_weights_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MOST", 101)
    check_pickle(io.BytesIO(b"N0" * 50 + b"N."), ANY)
    with pytest.raises(pickle.UnpicklingError, match="more values"):
        check_pickle(io.BytesIO(b"N0" * 51 + b"N."), ANY)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("memo", b"\x80\x02}r\xff\xff\xff\x07."),
        ("stack", entry(b")" + b"\x85" * MANY)),
        ("attributes", b"\x80\x02cnumpy\ndtype\n}b."),
    ],
)  # fmt: skip
def test_such_pickles_of_arrays_are_damaged(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / f"{name}.pkl").write_bytes(data)
    with pytest.raises(WeightsError, match="damaged or no pickle of arrays"):
        read_arrays(tmp_path / f"{name}.pkl")


def archive(path: Path, data: bytes, *more: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive of PyTorch with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in (("x/data.pkl", data), ("x/byteorder", b"little"), ("x/version", b"3\n"), *more):
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["builtins bytearray", "torch FloatTensor", "torch Tensor", "torch.nn.parameter Parameter"])
def test_what_makes_much_of_a_number_is_no_name_for_weights(tmp_path: Path, name: str) -> None:
    """PyTorch itself lets these names be called: three bytes ask for three gigabytes."""
    data = entry(call(name, b"J\x00\x00\x00\x70"))
    legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + data + b"\x80\x02]."
    (tmp_path / "legacy.pt").write_bytes(legacy)
    for path in (archive(tmp_path / "archive.pt", data), tmp_path / "legacy.pt"):
        with pytest.raises(WeightsError, match=rf"it holds Python objects \({re.escape(name.replace(' ', '.'))}\)"):
            read_state(path)


def test_archives_are_as_pytorch_writes_them(tmp_path: Path) -> None:
    sound = entry(b"N")
    archive(tmp_path / "packed.pt", sound, ("x/data/0", bytes(2**22)), compression=zipfile.ZIP_DEFLATED)
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(tmp_path / "twice.pt", sound, ("x/data.pkl", sound))
    for name in ("packed.pt", "twice.pt"):
        with pytest.raises(WeightsError, match="compressed or called the same"):
            read_state(tmp_path / name)
    for content in (
        b"prefix" + archive(tmp_path / "sound.pt", sound).read_bytes(),
        b"c__builtin__\nbytearray\nI9\n\x85R.",
        b"PK\x03\x04",
    ):
        (tmp_path / "other.pt").write_bytes(content)
        with pytest.raises(WeightsError, match="damaged or no weights file"):
            read_state(tmp_path / "other.pt")


def test_numbers_under_many_names_are_no_weights(tmp_path: Path) -> None:
    """A small file cannot stand for a large model; a few names for the same numbers can be."""
    numbers, array = torch.zeros(10_000), np.zeros(10_000, np.float32)
    for count, fits in ((3, True), (200, False)):
        state: dict[str, Any] = {f"a{number}": numbers for number in range(count)}
        torch.save(state, tmp_path / "weights.pt")
        (tmp_path / "weights.pkl").write_bytes(pickle.dumps(dict.fromkeys(state, array)))
        for read, name in ((read_state, "weights.pt"), (read_arrays, "weights.pkl")):
            if fits:
                assert len(read(tmp_path / name)) == count
            else:
                with pytest.raises(WeightsError, match=rf"{name}: its tensors are many times larger than the file"):
                    read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a\nb", torch.zeros(1)), ("module." * 100_000, torch.zeros(1)), ("\x1b[2J", torch.zeros(1)),
        ("a", torch.zeros(2, dtype=torch.complex64)), ("a", torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)),
        ("a", torch.zeros(2, dtype=torch.float8_e8m0fnu)), ("a@step", torch.zeros(2).to_sparse()),
    ],
)  # fmt: skip
def test_names_and_numbers_that_no_model_has(tmp_path: Path, name: str, value: torch.Tensor) -> None:
    torch.save({"b": torch.zeros(1), name: value}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError) as caught:
        read_state(tmp_path / "weights.pt")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
