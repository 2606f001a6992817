"""Model card of saved weights: ``README.md`` with the metadata of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lexiseg.methods.base import Segmenter
from lexiseg.methods.weights import MODEL_FILE

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_HUB_LICENCES = frozenset(  # identifiers of the hub's metadata
    [
        "agpl-3.0",
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc0-1.0",
        "gpl-3.0",
        "lgpl-3.0",
        "mit",
    ]
)
STEPS = 4  # of the learning curve, the last ones
CLASSES = 12  # names of training classes


def model_card(card: Mapping[str, Any], segmenter: Segmenter, name: str | None) -> ModelCard:
    """Build the model card of weights.

    Args:
        card: the card of the weights, as `save_segmenter` returns it.
        segmenter: their segmenter.
        name: name for `lexiseg.load`, ``hf:OWNER/NAME``; None: they are in a folder.

    Returns:
        The model card; its text is ``str(model_card)``.
    """
    from huggingface_hub import ModelCard, ModelCardData  # heavy

    recipe = card.get("recipe") or {}
    licence, licence_name = _licence(card.get("licence"))
    bases = [origin["repository"] for origin in card.get("backbones", {}).values() if "repository" in origin]
    tasks = [f"{task}-segmentation" for task in segmenter.tasks]
    metadata = ModelCardData(
        license=licence,
        license_name=licence_name,
        library_name="lexiseg",
        pipeline_tag="image-segmentation",
        tags=["open-vocabulary-segmentation", *tasks, segmenter.key, card["model"]],
        datasets=[re.sub(r"[^\w.-]+", "-", str(recipe["data"]))] if recipe.get("data") else None,
        base_model=[base for base in bases if not base.startswith("spaces/")] or None,
    )
    sections = (
        _title(card, segmenter, name),
        _use(name),
        _weights(card),
        _training(card, recipe),
        _scores(card, name),
        ["## Config", "", *_json_block(card["config"])],
        ["## Reference", "", f"{segmenter.reference}."],
    )
    body = "\n\n".join("\n".join(lines) for lines in sections)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")


def _licence(licence: str | None) -> tuple[str | None, str | None]:
    """Identifier of a licence in the hub's metadata, and its name if it has no identifier."""
    if not licence or licence == "none stated":
        return None, None
    name = re.sub(r"[^\w.]+", "-", licence.lower()).strip("-")
    return (name, None) if name in _HUB_LICENCES else ("other", name or "other")


def _title(card: Mapping[str, Any], segmenter: Segmenter, name: str | None) -> list[str]:
    title = card["model"] if name is None else name.rpartition("/")[2]
    return [
        f"# {title}",
        "",
        f"Open-vocabulary image segmentation: class names in, masks out ({', '.join(segmenter.tasks)}). Weights of the model "
        f"`{card['model']}` of the Python library lexiseg, method `{segmenter.key}`.",
    ]


def _use(name: str | None) -> list[str]:
    call = 'from_pretrained("FOLDER")  # the folder of this file' if name is None else f'load("{name}")'
    lines = [
        "## Use",
        "",
        "```python",
        "import lexiseg",
        "",
        f"segment = lexiseg.{call}",
        'result = segment("photo.jpg", ["dog, puppy", "grass", "sky"])',
        'result.save("out")',
        "```",
    ]
    if name is not None:
        lines += ["", "```", f'lexiseg segment photo.jpg --model {name} --classes "dog, puppy; grass; sky"', "```"]
    return lines


def _weights(card: Mapping[str, Any]) -> list[str]:
    parts = card["parts"]
    outside = {part: origin for part, origin in card.get("backbones", {}).items() if part not in parts}
    lines = [
        "## Weights",
        "",
        f"`{MODEL_FILE}` holds {card['numbers']:,} values in {card['tensors']} tensors, of the parts {', '.join(parts)}. "
        f"lexiseg {card['lexiseg']} wrote it on {card['date']}. There is no code beside it.",
    ]
    if outside:
        rows = [(part, _origin(origin)) for part, origin in sorted(outside.items())]
        lines += [
            "",
            "Frozen backbones, which loading takes from where they are published:",
            "",
            *_table(("part", "from"), rows),
        ]
    return lines


def _origin(origin: Mapping[str, str]) -> str:
    """Origin of a backbone in words."""
    if "repository" in origin:
        return f"[{origin['repository']}](https://huggingface.co/{origin['repository']})"
    if "address" in origin:
        return origin["address"]
    file, sha256 = origin.get("file", "unknown"), origin.get("sha256", "unknown")
    return f"{'lexiseg itself' if '/' in file else 'a file of the author'}, `{file}`, SHA-256 `{sha256}`"


def _training(card: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    lines = ["## Training", ""]
    data = card.get("data") or recipe.get("data")
    lines.append(f"Data: {data}." if data else "The training data are not recorded.")
    if classes := card.get("training_classes"):
        names = ", ".join(names[0] for names in classes[:CLASSES])
        lines.append(f"{len(classes):,} classes: {names}{', …' if len(classes) > CLASSES else ''}.")
    if step := card.get("step"):
        lines.append(f"Steps: {step:,}.")
    if recipe:
        lines += ["", "<details><summary>Recipe</summary>", "", *_json_block(recipe), "", "</details>"]
    return lines


def _scores(card: Mapping[str, Any], name: str | None) -> list[str]:
    """Scores of the last steps at which the training was validated, a column each."""
    curve = [row for row in card.get("curve") or () if isinstance(row, Mapping)]
    if not curve and card.get("validation"):
        curve = [{"step": card.get("step", ""), **card["validation"]}]
    lines = ["## Scores", ""]
    if not curve:
        model = f" --model {name}" if name else f" --model {card['model']} --weights …"
        return [*lines, f"None are recorded. `lexiseg evaluate --data NAME{model} --output runs/scores` measures them."]
    shown = curve[-STEPS:]
    keys = [key for key in shown[-1] if key not in ("step", "seconds")]
    rows = [(key, *(_number(row.get(key)) for row in shown)) for key in keys]
    titles = ("metric", *(f"step {row.get('step', '')}" for row in shown))
    return [*lines, "Measured during the training, on its validation data:", "", *_table(titles, rows)]


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"


def _json_block(value: object) -> list[str]:
    """A fenced block of JSON."""
    return ["```json", json.dumps(value, indent=1, ensure_ascii=False), "```"]
