"""Does the service keep its own OpenAPI document? schemathesis sends what the document allows, and what it does not.

``python tools/check_openapi.py [--examples 25]`` starts ``lexiseg serve`` with ``fcclip-tiny`` and runs schemathesis, which is no
dependency (``pip install schemathesis``), with all its checks but one: requests that fit the schema may be refused, since few
byte strings are pictures. A status of 500, an undocumented status or content type, or an answer that does not fit its schema
fails. The exit status is schemathesis's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec

MODEL = "fcclip-tiny,shortest_edge=64"


def main() -> int:
    """Run schemathesis against a service of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=25, help="requests for each operation and phase (default: 25)")
    arguments = parser.parse_args()
    if find_spec("schemathesis") is None:
        sys.exit("this needs schemathesis: pip install schemathesis")
    command = [sys.executable, "-m", "lexiseg", "serve", "--model", MODEL, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
        try:
            assert service.stdout is not None
            address = service.stdout.readline().split()[-1]
            check = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}openapi.json", "--no-color"]
            check += ["--max-examples", str(arguments.examples), "--request-timeout", "120", "--generation-deterministic"]
            return subprocess.run([*check, "--exclude-checks", "positive_data_acceptance"], check=False).returncode
        finally:
            service.terminate()


if __name__ == "__main__":
    sys.exit(main())
