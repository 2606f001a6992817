"""A stranger's first day: the commands of the README and of docs/first-day.md on photographs, from the wheel alone, on a terminal.

``python tools/first_day.py --photographs FOLDER [--work FOLDER] [--json]`` builds the wheel, installs it with the
versions of requirements.lock into an environment of its own, and types each command into a pseudo-terminal. Weights of
`sam_clip-mobile`, random and at full size, come from a server on loopback that stands in for the Hugging Face hub and GitHub:
results mean nothing, but everything takes the time that it takes. The commands of the page are those for pictures, with the
photographs in place of its scenes and without ``--model``, as the page says.

Of each command it prints the exit status, seconds of the clock and of the processor, the longest time without a sign on the
terminal, and what stood there at the end. The exit status is 1 if a command fails or is silent for more than 10 s. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL, SILENCE = "sam_clip-mobile", 10.0  # seconds
REPOSITORY = "ChaoningZhang/MobileSAM"  # of the stand-in: GitHub's address is in its place
QUESTION = "[y/N] "
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Row:
    """What a command did.

    Attributes:
        command: its words.
        status: exit status.
        wall: seconds.
        cpu: seconds of the processor, of its child processes, too.
        silence: longest time without a sign on the terminal, in seconds.
        after: the line of the terminal it came after.
        lines: the terminal at the end.
    """

    command: list[str]
    status: int
    wall: float
    cpu: float
    silence: float
    after: str
    lines: list[str]


def installed(folder: Path) -> Path:
    """Build the wheel and install it; returns the folder of the environment."""
    built, environment, uv = folder / "wheel", folder / "environment", Path(sys.executable).with_name("uv")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(built), str(ROOT)], check=True)
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    (wheel,) = built.glob("*.whl")
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", environment / "bin/python"]
    subprocess.run([*install, "--constraints", ROOT / "requirements.lock", wheel], check=True)
    return environment


def weights(folder: Path) -> tuple[Path, Path]:
    """Write random weights of CLIP and of MobileSAM as they are published; returns the files."""
    import torch
    from safetensors.torch import save_file

    from lexiseg.backbones import sam_weights
    from lexiseg.methods import model_named

    torch.manual_seed(0)
    parts = model_named(MODEL).empty().parts()
    decoder = parts["sam"].model.mask_decoder
    with torch.no_grad():  # SAM with random weights drops all its masks; this one is sure of them
        decoder.iou_prediction_head.proj_out.bias.fill_(1.0)
        for network in decoder.output_hypernetworks_mlps:
            network.proj_out.weight.mul_(1e6)
    clip, sam = folder / "open_clip_model.safetensors", folder / "mobile_sam.pt"
    save_file({name: value.contiguous() for name, value in parts["clip"].clip_model.state_dict().items()}, clip)
    torch.save(sam_weights.to_official(parts["sam"].model.state_dict()), sam)
    return clip, sam


def redirected(environment: Path, address: str, digest: str) -> None:
    """Replace address and digest of MobileSAM in the installed table of sources, for random weights are not those of GitHub."""
    (table,) = environment.glob("lib/*/site-packages/lexiseg/backbones/sources.py")
    row = f'"mobile_sam": Source("mobile_sam.pt", APACHE, address="{address}", size=40_700_000, digest="{digest}"),'
    text, changes = re.subn(
        r'"mobile_sam": Source\(\n.*?\n    \),|"mobile_sam": Source\([^\n]*\),',
        row,
        table.read_text(encoding="utf-8"),
        count=1,
        flags=re.DOTALL,
    )
    assert changes == 1
    table.write_text(text, encoding="utf-8")


def commands(photographs: list[Path]) -> Iterator[list[str]]:
    """The commands, in their order."""
    from tests.architecture import test_docs

    readme, page = (
        list(test_docs.commands((ROOT / name).read_text(encoding="utf-8"))) for name in ("README.md", "docs/first-day.md")
    )
    (first,) = (words for words in readme if words[0] == "segment")
    yield ["models"]
    for photograph in photographs:
        yield [str(photograph) if word == "photo.jpg" else word for word in first]
    yield [str(photographs[0]) if word == "photo.jpg" else word for word in first] + ["--model", "fast", "--output", "fast"]
    yield ["fetch", MODEL]
    for words in page:
        if words[0] in ("segment", "figure") and "--weights" not in words:
            chosen = ["--model", "fast"] if words[0] == "figure" else []
            yield [*_with_photographs(words, photographs), *chosen]


def _with_photographs(words: list[str], photographs: list[Path]) -> list[str]:
    """A command of the page without its models, of photographs in place of scenes."""
    places = {"world/images/000000.png": str(photographs[0]), "world/images": str(photographs[0].parent)}
    kept = [word for before, word in zip(["", *words], words, strict=False) if "--model" not in (before, word)]
    return [places.get(word, word) for word in kept]


def typed(words: list[str], folder: Path, environment: dict[str, str]) -> Row:
    """Run a command on a pseudo-terminal, and answer its questions with yes."""
    ours, theirs = pty.openpty()
    began = time.monotonic()
    signs = [(began, 0)]  # when there was one, and how much of what is shown was there then
    shown = b""
    process = subprocess.Popen(
        words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    while True:
        try:
            chunk = os.read(ours, 2**16)
        except OSError:  # nobody has it open any more
            break
        if not chunk:
            break
        shown += chunk
        signs.append((time.monotonic(), len(shown)))
        if shown.decode("utf-8", "replace").endswith(QUESTION):
            os.write(ours, b"y\n")
    os.close(ours)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    signs.append((time.monotonic(), len(shown)))
    silence, length = max((end - start, length) for (start, length), (end, _) in pairwise(signs))
    after = (screen(shown[:length]) or [""])[-1]
    cpu = usage.ru_utime + usage.ru_stime
    return Row(words, process.returncode, signs[-1][0] - began, cpu, silence, after, screen(shown))


def screen(shown: bytes) -> list[str]:
    """Lines of a terminal: of a line that was rewritten, what was left of it."""
    lines = shown.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    last = [re.split(r"\r|\x1b\[K", line.rstrip("\r"))[-1] for line in lines]
    return [text for text in (ESCAPE.sub("", line).rstrip() for line in last) if text]


def main() -> int:
    """All commands, and a row of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--work", type=Path, help="where environment, weights and results go (default: a temporary folder)")
    parser.add_argument("--environment", type=Path, help="one that an earlier call has installed into")
    parser.add_argument("--lines", type=int, default=12, help="of the terminal that are printed at most, a command")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() if arguments.work is None else nullcontext(str(arguments.work)) as work:
        rows = _day(arguments, Path(work).resolve())
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print(f"{'status':>6}{'wall s':>8}{'cpu s':>8}{'silent s':>10}  command")
        for row in rows:
            print(f"{row.status:>6}{row.wall:>8.1f}{row.cpu:>8.1f}{row.silence:>10.1f}  {' '.join(row.command)}")
    return int(any(row.status or row.silence > SILENCE for row in rows))


def _day(arguments: argparse.Namespace, work: Path) -> list[Row]:
    from tests.backbones import stand_in_hub

    photographs = sorted(path.resolve() for path in arguments.photographs.iterdir() if path.suffix == ".jpg")
    environment = arguments.environment.resolve() if arguments.environment else installed(work)
    clip, sam = weights(work)
    stand_in_hub.digest = lru_cache(maxsize=8)(stand_in_hub.digest)  # of 600 MB, at every request
    for name in ("home", "results"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()
    with stand_in_hub.stand_in_hub() as hub:
        hub.files = {
            "timm/vit_base_patch16_clip_224.openai": {clip.name: clip.read_bytes()},
            REPOSITORY: {sam.name: sam.read_bytes()},
        }
        for files in hub.files.values():
            for content in files.values():
                digest = stand_in_hub.digest(content, large=True)  # MobileSAM's is the last
        redirected(environment, f"http://{hub.address}/{REPOSITORY}/resolve/main/{sam.name}", digest)
        variables = {
            "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
            "HOME": str(work / "home"),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
        }
        variables |= {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
        variables["HF_ENDPOINT"] = f"http://{hub.address}"
        rows = []
        for words in commands(photographs):
            rows.append(row := typed(["lexiseg", *words], work / "results", variables))
            print(f"$ {' '.join(row.command)}", *row.lines[: arguments.lines], sep="\n", file=sys.stderr)
            if len(row.lines) > arguments.lines:
                print(f"[{len(row.lines) - arguments.lines} more lines]", file=sys.stderr)
            print(
                f"[exit status {row.status}, {row.wall:.1f} s, {row.cpu:.1f} s of the processor, silent for {row.silence:.1f} s after {row.after!r}]\n",
                file=sys.stderr,
            )
    return rows


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    sys.exit(main())
