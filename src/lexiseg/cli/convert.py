"""``lexiseg convert``."""

from __future__ import annotations

import argparse
import json

from lexiseg.checkpoints.convert import to_lexiseg, to_official


def run(arguments: argparse.Namespace) -> int:
    """Convert an official checkpoint to lexiseg's weights, or back."""
    if arguments.to == "official":
        report = to_official(arguments.file, arguments.model, arguments.output, half=arguments.half)
    else:
        report = to_lexiseg(arguments.file, arguments.model, arguments.output, half=arguments.half, progress=True)
    if arguments.json:
        document = {
            "model": arguments.model,
            "files": [str(file) for file in report.files],
            "mapped": report.mapped,
            "dropped": report.dropped,
            "card": report.card,
        }
        print(json.dumps(document))
        return 0
    print(f"{arguments.model}: {report.mapped} keys mapped, {len(report.dropped)} dropped")
    for key, reason in report.dropped.items():
        print(f"  {key}: {reason}")
    if arguments.to == "lexiseg":
        print(f"  parts: {', '.join(report.card['parts'])}; licence of the weights: {report.card['licence']}")
    for file in report.files:
        print(f"  → {file} ({file.stat().st_size / 1e6:,.1f} MB)")
    return 0
