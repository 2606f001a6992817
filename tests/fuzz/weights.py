"""Files of weights: safetensors, PyTorch's archives and older files, pickles of arrays; none may run code or take much memory.

An input is a line that says by which loader and under which name it is read, and the file itself.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lexiseg.backbones import sam_weights
from lexiseg.backbones.array_pickles import read_arrays
from lexiseg.backbones.clip import load_clip
from lexiseg.backbones.grounding_dino import load_grounding_dino
from lexiseg.backbones.mask2former import load_mask2former
from lexiseg.backbones.sam_loading import load_sam
from lexiseg.backbones.state_dicts import read_state
from tests.backbones import test_mask2former
from tests.fuzz.configs import CLIP_FILES, DETECTORS, folders, prepare  # noqa: F401, it is of this area, too
from tests.fuzz.mutations import ODD, mutated_bytes, mutated_document
from tests.fuzz.watched import MARKER, watched

SUFFIX = ".weights"

_CODE = f"open({MARKER!r}, 'w')"
_CALLS = tuple(
    b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(b"X" + struct.pack("<I",
    len(a)) + a.encode() for a in texts) + b"tR"
    for name, *texts in (
        ("os system", f"touch {MARKER}"), ("posix system", f"touch {MARKER}"), ("nt system", f"echo > {MARKER}"),
        ("subprocess getoutput", f"touch {MARKER}"), ("builtins exec", _CODE), ("__builtin__ eval", _CODE),
        ("builtins open", MARKER, "w"), ("io open", MARKER, "w"), ("_io FileIO", MARKER, "w"), ("pathlib Path.touch", MARKER),
        ("numpy load", MARKER), ("numpy.testing._private.utils runstring", _CODE, ""),
        ("numpy.distutils.exec_command exec_command", MARKER),
        ("torch load", MARKER), ("torch.hub load", MARKER, MARKER), ("torch.utils.data Dataset", MARKER),
        ("torch FloatTensor", MARKER),
        ("timeit timeit", _CODE), ("code interact", MARKER), ("runpy run_path", MARKER), ("pickle loads", MARKER),
        ("builtins getattr", MARKER, "__class__"), ("builtins __import__", "os"), ("importlib import_module", "antigravity"),
        ("operator attrgetter", "__class__"), ("functools partial", MARKER), ("types FunctionType", MARKER),
        ("lexiseg.ops.files write_json", MARKER, "x"), ("lexiseg.cli main", MARKER), ("_codecs encode", "x" * 999, "punycode"),
    )
)  # fmt: skip
_BOMBS = (  # each would take gigabytes, minutes or Python's stack
    b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R",
    b"ctorch.storage\nUntypedStorage\n\x8a\x05\xff\xff\xff\xff\x7f\x85R", b"cnumpy\ndtype\nX\x0b\0\0\0V2000000000\x85R",
    b"r\xff\xff\xff\x07", b"r\xff\xff\xff\xff", b"p4000000000\n", b"\x96\xff\xff\xff\x7f\0\0\0\0",
    b"\x8e\xff\xff\xff\xff\x0f\0\0\0",
    b"B\xff\xff\xff\xff", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b")" + b"\x85" * 100_000, b"}" * 50_000, b"(" * 50_000,
    b"L" + b"9" * 10_000 + b"L\n", b"I" + b"9" * 10_000 + b"\n", b"\x8b\xff\xff\xff\x7f", b"}X\x01\0\0\0aK\x01sb",
    b"2" * 50_000,
)  # fmt: skip
_PIECES = (
    *(bytes([code]) for code in range(256)), *_CALLS, *_BOMBS, *_CALLS,
    b"N", b"]", b"}", b")", b"K\0", b"J\xff\xff\xff\xff", b"\x8a\x09\0\0\0\0\0\0\0\0\x01", b"G\x7f\xf8\0\0\0\0\0\0",
    b"X\0\0\0\0",
    b"X\x01\0\0\0a", b"\x8c\x05model", b"h\0", b"j\0\0\0\0", b"0", b"2", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"\x81",
    b"\x92", b"\x93", b"s", b"u", b"a", b"e", b"Q", b"P0\n", b"\x82\x01", b"\x97", b"\x98", b".", b"\x80\0", b"\x80\x04",
    b"\x80\xff",
    b"ccollections\nOrderedDict\n", b"ctorch\nfloat32\n", b"ctorch\nFloatStorage\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n",
    b"cnumpy._core.multiarray\nscalar\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch._utils\n_rebuild_qtensor\n",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 7, -1, -8, 255, 2**15, 2**20, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63), 2**200)


def inputs(random: np.random.Generator) -> bytes:
    """A mutated file of weights."""
    kinds = (_safetensors, _safetensors, _archive, _archive, _legacy, _arrays, _arrays)
    with warnings.catch_warnings(action="ignore"):  # of sparse and quantised tensors
        return kinds[int(random.integers(len(kinds)))](random)


def attempt(path: Path) -> None:
    """Load it as the model that it says it is."""
    name, _, content = path.read_bytes().partition(b"\n")
    kind, file = name.decode().split("/")
    place = path.parent / kind / file
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    load: Callable[[Path], object] = {
        "state": read_state, "arrays": read_arrays, "clip": load_clip, "mask2former": load_mask2former,
        **dict.fromkeys(DETECTORS, load_grounding_dino),
    }.get(kind, load_sam)  # fmt: skip
    folder = file.startswith(("open_clip", "model."))
    watched(lambda: load(place.parent if folder else place))


# What is mutated: the weights of tiny models, and tensors of many kinds.


@cache
def _models() -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Of each kind of loader the name of its file and sound weights; "state" is no model and is read in no time."""
    states = {
        kind: safetensors.torch.load(files["model.safetensors"])
        for kind, files in folders().items()
        if "model.safetensors" in files
    }
    clip = safetensors.torch.load(folders()["clip"][CLIP_FILES[1]])
    found = {kind: ("model.safetensors", state) for kind, state in states.items()}
    found["clip"] = (CLIP_FILES[1], clip)
    found["state"] = (
        "weights.safetensors",
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.ones(3).half()},
    )
    return found


@cache
def _official() -> dict[str, dict[str, Tensor]]:
    """The same under official names, of the models that are published so."""
    sam, mask2former = sam_weights.to_official(_models()["sam"][1]), test_mask2former.official(test_mask2former.tiny("swin"))
    return {"sam": sam, "mask2former": mask2former, "state": _models()["state"][1]}


def _pick(random: np.random.Generator, choices: Any) -> Any:
    choices = tuple(choices)
    return choices[int(random.integers(len(choices)))]


def _odd_tensor(random: np.random.Generator) -> Any:
    """A tensor that is unusual, or what stands beside tensors."""
    plain = torch.arange(24.0).reshape(2, 3, 4)
    return _pick(random, (
        lambda: plain.T if plain.dim() == 2 else plain.permute(2, 0, 1), lambda: plain[:, ::2], lambda: plain.flatten()[5:7],
        lambda: torch.zeros(1).expand(2**30), lambda: torch.zeros(1).expand(2**61), lambda: plain.as_strided((2, 4), (0, 1)),
        lambda: torch.full((3,), float("nan")), lambda: torch.full((3,), float("inf")), lambda: torch.zeros(0),
        lambda: torch.zeros(0, 2**40),
        lambda: plain.to_sparse(), lambda: plain[0].to_sparse_csr(), lambda: torch.quantize_per_tensor(plain, 0.1, 0,
        torch.qint8),
        lambda: plain.to(torch.complex64), lambda: plain.to(torch.complex64).conj(), lambda: plain.to("meta"),
        lambda: plain.bool(),
        lambda: plain.to(torch.float8_e4m3fn), lambda: plain.to(torch.float8_e5m2fnuz), lambda: plain.to(torch.uint16),
        lambda: plain.double(),
        lambda: torch.nn.Parameter(plain), lambda: plain.to(torch.uint8).view(torch.float4_e2m1fn_x2),
        lambda: np.float64(3), lambda: np.str_("x"),
        lambda: np.int8(1), lambda: np.bool_(True), lambda: {"model": {"model": {"model": {"state_dict": {}}}}},
        lambda: [plain],
        lambda: (plain,), lambda: {3: plain}, lambda: torch.Size([1, 2]), lambda: torch.float32,
        lambda: torch.device("cpu"), lambda: b"x" * 99,
        lambda: plain.untyped_storage(), lambda: _pick(random, ODD),
    ))()  # fmt: skip


def _mutated_state(state: Mapping[str, Any], random: np.random.Generator) -> Any:
    """Weights with a few tensors replaced, removed or renamed, wrapped as training programs do."""
    held: dict[Any, Any] = dict(state)
    for _ in range(int(random.integers(0, 3))):
        name, change = _pick(random, held or {"a": 0}), random.random()
        value = held.pop(name, None)
        if change < 0.6:
            held[name] = _odd_tensor(random)
        elif change < 0.75:
            names = (f"{name}@step", f"module.{name}", f"{name}\n", "é" * 300, "x" * 9999, "", "\ud800", 3, None, 0.5, (1, 2))
            held[_pick(random, names)] = value
        elif change < 0.85 and isinstance(value, Tensor) and value.layout == torch.strided and value.dtype == torch.float32:
            shapes = value[None], value.flatten(), value.half(), value.double(), value.long(), value.flatten()[1:]
            held[name] = _pick(random, shapes)
    if random.random() < 0.1:
        held = {f"{'module.' * int(random.integers(1, 2000))}{name}": value for name, value in held.items()}
    if random.random() < 0.2:
        held = {_pick(random, ("model", "state_dict", "ema", "weights", 0)): held, "epoch": _odd_tensor(random)}
    if random.random() < 0.02:
        held["model"] = held
    return held


def _safetensors(random: np.random.Generator) -> bytes:
    """Its header and its numbers, mutated."""
    kind = _pick(random, ("state",) * 12 + tuple(_models()))
    file, state = _models()[kind]
    data = safetensors.torch.save({name: value.contiguous() for name, value in state.items()})
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    change = random.random()
    if change < 0.45:
        entry = header[_pick(random, header)]
        if random.random() < 0.5:
            entry["shape"] = _pick(
                random, ([2**62, 4], [0], [], [1], [2**64], [-1], [1] * 99, None, [0, 2**62], entry["shape"] * 2)
            )
        if random.random() < 0.5:
            entry["dtype"] = _pick(
                random, ("F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U64", "X", 3, None)
            )
        if random.random() < 0.5:
            entry["data_offsets"] = _pick(
                random, ([0, 4], [0, 2**62], [4, 0], [0, 0], [-4, 0], [0], [], [1.5, 2], ["0", "4"], None)
            )
    elif change < 0.7:
        header = mutated_document(header, random)
    elif change < 0.75:
        header[_pick(random, ("more", "__metadata__", "\n", "a@step"))] = _pick(random, ODD)
    elif change < 0.9:
        place = int(random.integers(len(numbers) // 4)) * 4
        numbers = (
            numbers[:place]
            + _pick(random, (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f"))
            + numbers[place + 4 :]
        )
    text = json.dumps(header).encode() + b" " * int(random.integers(0, 9))
    size = len(text) if random.random() < 0.95 else int(_pick(random, (0, 1, 2**31, 2**40, 2**63, 2**64 - 1, len(text) + 1)))
    data = struct.pack("<Q", size) + text + numbers
    if change > 0.95:
        data = mutated_bytes(data, random)
    return f"{kind}/{file}\n".encode() + data


def _mutated_pickle(data: bytes, random: np.random.Generator) -> bytes:
    """A pickle with instructions put in, taken out or replaced; numbers and names changed."""
    if random.random() < 0.1:
        return mutated_bytes(data, random)
    for _ in range(int(random.integers(1, 3))):
        try:
            starts = [place for *_, place in pickletools.genops(data) if place is not None]
            arguments = [(opcode, value, place) for opcode, value, place in pickletools.genops(data)]
        except Exception:  # what is no pickle any more can be changed no further
            return data
        number = int(random.integers(len(starts)))
        start = starts[number]
        end = starts[number + 1] if number + 1 < len(starts) else len(data)
        change = random.random()
        if change < 0.35:
            data = data[:start] + _pick(random, _PIECES) + data[start:]
        elif change < 0.5:
            data = data[:start] + _pick(random, _PIECES) + data[end:]
        elif change < 0.6:
            data = data[:start] + data[end:]
        elif change < 0.7:
            data = data[:end] + data[start:end] * int(random.integers(1, 4)) + data[end:]
        else:
            names = [index for index, (opcode, *_) in enumerate(arguments) if opcode.name in {"GLOBAL", "STACK_GLOBAL"}]
            whole = [
                index
                for index, (_, value, _) in enumerate(arguments)
                if isinstance(value, int) and "PUT" not in _.__class__.__name__
            ]
            chosen = names if change < 0.8 and names else whole
            if not chosen:
                continue
            number = int(_pick(random, chosen))
            start, end = starts[number], starts[number + 1] if number + 1 < len(starts) else len(data)
            encoded = pickle.encode_long(_pick(random, _NUMBERS))
            other = _pick(random, _CALLS) if chosen is names else b"\x8a" + bytes([len(encoded)]) + encoded
            if chosen is names:  # the name alone, called with whatever comes
                other = other[: other.index(b"\n", other.index(b"\n") + 1) + 1]
            data = data[:start] + other + data[end:]
    return data


def _saved(document: Any, random: np.random.Generator, **options: Any) -> bytes:
    """As `torch.save` writes it; what it cannot write is left as it was."""
    buffer = io.BytesIO()
    protocol = 2 if random.random() < 0.7 else int(random.integers(0, 6))
    torch.save(document, buffer, pickle_protocol=protocol, **options)
    return buffer.getvalue()


def _document(random: np.random.Generator) -> tuple[str, Any]:
    kind = _pick(random, ("state",) * 12 + tuple(_official()))
    return kind, _mutated_state(_official()[kind], random)


def _archive(random: np.random.Generator) -> bytes:
    """An archive of PyTorch: its tensors, its pickle, its members, its bytes."""
    kind, document = _document(random)
    if kind == "state" and random.random() < 0.2:
        kind, document = "clip", _mutated_state(_models()["clip"][1], random)
    name = "open_clip_pytorch_model.bin" if kind == "clip" else "weights.pt"
    try:
        data = _saved(document, random)
    except Exception:  # such as a tensor of four bits
        data = _saved({"a": torch.zeros(3)}, random)
    change = random.random()
    if change < 0.1:
        data = mutated_bytes(data, random)
    elif change < 0.85:
        data = _repacked(data, random)
    return f"{kind}/{name}\n".encode() + data


def _repacked(data: bytes, random: np.random.Generator) -> bytes:
    """The members of an archive, one or another changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(members)).partition("/")[0]
    buffer, compression = io.BytesIO(), zipfile.ZIP_DEFLATED if random.random() < 0.05 else zipfile.ZIP_STORED
    change = random.random()
    if change < 0.7:
        members[f"{root}/data.pkl"] = _mutated_pickle(members[f"{root}/data.pkl"], random)
    elif change < 0.8:
        name = _pick(random, members)
        members[name] = _pick(random, (b"", b"big", b"0" * 10_000, mutated_bytes(members[name], random)))
    elif change < 0.87:
        members.pop(_pick(random, members))
    else:
        name = _pick(
            random,
            (
                f"{root}/constants.pkl",
                f"{root}/code/x.py",
                f"{root}/../../x",
                f"{root}/DATA.PKL",
                "other/data.pkl",
                f"{root}/data/é",
            ),
        )
        members[name] = _pick(random, (b"", _pick(random, _CALLS) + b".", b"x" * 99))
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if random.random() < 0.03:
            archive.writestr(f"{root}//data.pkl", b"\x80\x02" + _pick(random, _CALLS) + b".")
    return buffer.getvalue()


def _legacy(random: np.random.Generator) -> bytes:
    """A file of an old PyTorch, five pickles and then the numbers; or a bare pickle."""
    kind, document = _document(random)
    try:
        data = _saved(document, random, _use_new_zipfile_serialization=False)
    except Exception:
        data = _saved({"a": torch.zeros(3)}, random, _use_new_zipfile_serialization=False)
    if random.random() < 0.8:
        bounds, file = [0], io.BytesIO(data)
        for _ in range(5):
            list(pickletools.genops(file))
            bounds.append(file.tell())
        number = int(random.integers(5)) if random.random() < 0.3 else 3
        start, end = bounds[number], bounds[number + 1]
        data = data[:start] + _mutated_pickle(data[start:end], random) + data[end:]
    elif random.random() < 0.5:
        data = mutated_bytes(data, random)
    else:
        data = _pick(random, (b"", b"\x80\x02")) + _pick(random, _CALLS + _BOMBS) + b"."
    return f"{kind}/weights.{_pick(random, ('pt', 'pth', 'bin'))}\n".encode() + data


def _arrays(random: np.random.Generator) -> bytes:
    """A pickle of arrays as detectron2 writes it."""
    kind = _pick(random, ("arrays",) * 12 + ("mask2former",))
    state = _official()["state" if kind == "arrays" else kind]
    held: dict[Any, Any] = {name: value.numpy() for name, value in state.items()}
    if random.random() < 0.4:
        held[_pick(random, ("a", "more", 3, (1, 2), "\n", "x" * 9999))] = _pick(random, (
            np.zeros((0, 3)), np.arange(6).reshape(2, 3).T, np.array(7), np.float64(1), np.array(["x"]), np.array([None]),
            np.zeros(3, "c8"),
            np.zeros(3, "f4,i4"), np.zeros(3, ">f4"), np.zeros(3, "M8[s]"), np.array([np.nan]),
            np.broadcast_to(np.float32(1), (9, 9)), [], {}, 3, "x",
            np.ma.zeros(3), np.zeros(3, np.longdouble), np.zeros(2, "V9"), torch.zeros(2),
        ))  # fmt: skip
    document = {"model": held, "__author__": "x"} if random.random() < 0.5 else held
    data = pickle.dumps(document, int(random.integers(0, 6)))
    if random.random() < 0.2:
        data = data.replace(b"numpy._core", b"numpy.core")
    if random.random() < 0.85:
        data = _mutated_pickle(data, random)
    return f"{kind}/weights.pkl\n".encode() + data
