"""What every test runs with: a chosen device, fixed seeds, an empty cache of its own, and no network."""

from __future__ import annotations

import random
import sys
import tempfile

import numpy as np
import pytest
import torch

from lexiseg.ops.allocator import keep_freed_memory

NO_BROWSER = "for want of Chromium: apt-get install chromium"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where models run: cpu (the default), cuda, cuda:1, mps")
    parser.addoption("--screenshots", metavar="DIR", help="write the page's pictures of docs/images, with a model that can see")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, because huggingface_hub reads its settings when it is imported."""
    caches = tempfile.TemporaryDirectory(prefix="lexiseg-tests-")
    config.add_cleanup(caches.cleanup)
    environment = pytest.MonkeyPatch()
    config.add_cleanup(environment.undo)
    environment.setenv("LEXISEG_CACHE", f"{caches.name}/lexiseg")
    environment.setenv("HF_HOME", f"{caches.name}/huggingface")  # what this machine has downloaded must not decide a test
    environment.setenv("HF_HUB_OFFLINE", "1")
    torch.backends.cudnn.allow_tf32 = False  # a GPU's convolutions have three digits otherwise, and tests ask for five
    keep_freed_memory()  # else some machines spend half the suite's time on mapping pages
    torch.set_num_threads(min(2, torch.get_num_threads()))  # tiny tensors: more threads only wait for each other
    sys.addaudithook(_refuse_network)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in a line of its own that the page was not tested, where there is no browser."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_BROWSER in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"NOT TESTED: {len(skipped)} tests of the page, {NO_BROWSER}", red=True, bold=True)


def _refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise RuntimeError(f"a test tried to reach {address[0]}:{address[1]}; tests run without network")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of ``--device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers for a test wherever it stands in the suite."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
