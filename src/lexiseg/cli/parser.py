"""Commands and options of the command line, without slow imports."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from lexiseg import __version__

TASKS = ("panoptic", "semantic", "instance")
FORMATS = (
    *("overlay", "json", "map", "palette", "scores", "confidence", "coco", "coco-polygons", "coco-panoptic", "yolo"),
    *("labelme", "label-studio", "cvat", "geojson", "geotiff", "html"),
)
BATCH = "pictures per batch, limited by memory"
CONSENT = "do not ask before weights are fetched whose licence may restrict their use"
ROOT = "folder of the data sets (default: $DETECTRON2_DATASETS, else ./datasets)"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; its ``command`` is the name of the module to run."""
    parser = argparse.ArgumentParser(prog="lexiseg", description="Segment any image by words.")
    parser.add_argument("--version", action="version", version=f"lexiseg {__version__}")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add, summary in (
        ("segment", _segment, "segment pictures by words"),
        ("serve", _serve, "serve a page and a REST service that segment pictures by words"),
        ("models", _models, "list the models and what they need"),
        ("fetch", _fetch, "download the weights of models"),
        ("cache", _cache, "list or clear what lexiseg has downloaded and computed"),
        ("vocabulary", _vocabulary, "list the built-in vocabularies, or show one"),
        ("data", _data, "list, check or prepare data sets, fetch official class lists"),
        ("evaluate", _evaluate, "measure a model on data sets, by the field's protocols"),
        ("train", _train, "train a model by its recipe; resumes an interrupted training"),
        ("metrics", _metrics, "score prediction files that any tool wrote"),
        ("convert", _convert, "convert an official checkpoint to lexiseg's weights, or back"),
        ("figure", _figure, "draw the papers' figures of your own pictures: results and features of models"),
        ("reproduce", _reproduce, "reproduce the papers' tables and figures, or their twins on the emoji world"),
        ("world", _world, "render the emoji world with its ground truth"),
    ):
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add(command)
        _debug(command)
    return parser


def _debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of errors")


def _segment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="files, folders, globs ('photos/*.jpg'), - for standard input; with --allow-url http(s) addresses; or videos",
    )
    parser.add_argument("--allow-url", action="store_true", help="fetch pictures at public http(s) addresses")
    parser.add_argument("--allow-private-url", action="store_true", help="also at addresses of this machine and its networks")
    parser.add_argument(
        "--overwrite", action="store_true", help="also segment pictures that an earlier call with the same options has finished"
    )
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument(
        "--classes", metavar="WORDS", help="'dog, puppy; grass; sky': semicolons between classes, commas between synonyms"
    )
    words.add_argument(
        "--vocabulary", metavar="NAME|FILE", help="a built-in list ('lexiseg vocabulary'), or a file: one class a line, or JSON"
    )
    parser.add_argument(
        "--task", choices=TASKS, help="(default: panoptic; with --point or --box: instance, the only task they have)"
    )
    parser.add_argument(
        "--point",
        type=_point,
        action="append",
        metavar="X,Y",
        help="segment what is at this pixel of the upright picture alone; may be repeated, a segment each",
    )
    parser.add_argument(
        "--box",
        type=_box,
        action="append",
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="segment what is in this box alone; may be repeated, a segment each",
    )
    parser.add_argument(
        "--model",
        metavar="fast|best|NAME|hf:OWNER/NAME",
        help="see 'lexiseg models'; or a model on the Hugging Face hub, hf:OWNER/NAME[@REVISION] (default: the best for "
        "photographs whose weights are here, else 'fast')",
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="PART=FILE",
        help="a local file in place of a published one; may be repeated",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before weights are fetched")
    parser.add_argument(
        "--server", metavar="URL", help="segment by the 'lexiseg serve' at this address, not on this machine (http://HOST:8765)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="with --server: the service's token is in this file (default: that in LEXISEG_TOKEN)",
    )
    _options(parser)
    parser.add_argument(
        "--seen",
        metavar="NAME|FILE|official",
        help="class names of the training, in place of those stored with the weights; official: COCO's list that 'lexiseg data "
        "names coco-panoptic' fetches",
    )
    parser.add_argument(
        "--threshold",
        type=_unit,
        default=0.0,
        metavar="P",
        help="minimum score in 0..1; regions below it get no name (default: 0)",
    )
    parser.add_argument("--background", metavar="NAME", help="an additional class that competes; its regions are removed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for overlays, masks and segments (default: lexiseg-output; with --json: none)"
    )
    parser.add_argument(
        "--format",
        action="append",
        metavar="NAME",
        help=f"{', '.join(FORMATS)}; several between commas, or repeated (default: overlay,json,map)",
    )
    parser.add_argument("--font", metavar="FILE", help="write names in this font, .ttf, .otf or .ttc; others fill its gaps")
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help=f"{BATCH} (default: 1)")
    parser.add_argument(
        "--tile", type=_positive, metavar="PIXELS", help="cut larger pictures into tiles of this side, and merge their results"
    )
    parser.add_argument(
        "--overlap", type=_positive, metavar="PIXELS", help="least overlap of neighbouring tiles (default: an eighth of --tile)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per picture, or frame of a video")
    videos = parser.add_argument_group("videos", "results are --format overlay (MP4) and json (a line per frame)")
    videos.add_argument("--every", type=_positive, metavar="N", help="segment every Nth frame (default: 1)")
    videos.add_argument("--start", type=_from_zero, metavar="SECONDS", help="segment from here on (default: 0)")
    videos.add_argument("--end", type=_seconds, metavar="SECONDS", help="stop here (default: at the end)")
    videos.add_argument(
        "--track-iou",
        type=_unit,
        metavar="P",
        help="least IoU of the masks of a thing in two frames, for it to keep its id (default: 0.3)",
    )
    videos.add_argument(
        "--track-gap",
        type=_natural,
        metavar="N",
        help="frames for which a thing may be missing and still keep its id (default: 2)",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the model, such as alpha=0.3 ('lexiseg models --describe NAME' lists them); may be repeated",
    )


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME[,PART=FILE][,OPTION=VALUE]",
        help="a model to offer; may be repeated, the first is the default (default: all whose weights are on this machine)",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8765, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="requests must bear the token in this file (default: that in LEXISEG_TOKEN, if any)",
    )
    parser.add_argument("--insecure", action="store_true", help="serve other machines without a token")
    parser.add_argument("--label-studio", action="store_true", help="also be a machine learning backend of Label Studio")
    parser.add_argument(
        "--label-studio-url",
        metavar="URL",
        help="with --label-studio: the pictures of tasks are at this Label Studio, whose token is in LABEL_STUDIO_API_KEY "
        "(default: only those in the tasks themselves)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    for name, kind, default, metavar, about in (
        ("--queue", _positive, 64, "N", "requests accepted at a time; further ones get 429"),
        ("--batch", _positive, 8, "N", "pictures of one model and vocabulary that are computed together"),
        ("--timeout", _seconds, 300.0, "SECONDS", "time for a request, from its acceptance to its answer"),
        ("--memory", _seconds, 4.0, "GB", "weights kept in memory; the model not used for the longest time is dropped"),
        ("--max-upload", _positive, 20_000_000, "BYTES", "of a picture's file"),
        ("--max-pixels", _positive, 25_000_000, "N", "of a picture"),
        ("--max-names", _positive, 5_000, "N", "of a request, synonyms included"),
    ):
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{about} (default: {default:,})")


def _models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--describe", metavar="NAME", help="parameter counts and options of one model; needs no weights")
    parser.add_argument("--flops", action="store_true", help="with --describe: also the operations for one image")
    parser.add_argument("--speed", action="store_true", help="with --describe: also seconds and memory of the network")
    parser.add_argument(
        "--classes", type=_positive, default=150, metavar="N", help="with --flops or --speed: number of classes (default: 150)"
    )
    parser.add_argument("--device", default="auto", help="with --speed: auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--json", action="store_true")


def _fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="models of 'lexiseg models', or hf:OWNER/NAME")
    parser.add_argument("--yes", action="store_true", help=CONSENT)
    parser.add_argument("--json", action="store_true")


def _cache(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="what is cached, with sizes and folders")
    clear = actions.add_parser("clear", help="delete cached files; with names, only those")
    clear.add_argument("names", nargs="*", metavar="NAME", help="a line of 'lexiseg cache list' (default: all)")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    for action in (listing, clear):
        action.add_argument("--json", action="store_true")
        _debug(action)


def _vocabulary(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [NAME|FILE] [--json]\n       %(prog)s check NAME|FILE [--hypernyms FILE] [--json]"
    parser.add_argument("name", nargs="?", metavar="NAME|FILE", help="the list to show, or the word check")
    parser.add_argument("checked", nargs="?", metavar="NAME|FILE", help="after check: the list to check for clashing names")
    parser.add_argument("--hypernyms", metavar="FILE", help="with check: further lines such as 'animal > cat, dog'")
    parser.add_argument("--json", action="store_true")


def _data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all data sets: tasks, pictures, and what they are")
    check = actions.add_parser("check", help="what is there, what is missing, and how to get it")
    prepare = actions.add_parser("prepare", help="convert a download to the format lexiseg reads; resumes if interrupted")
    names = actions.add_parser("names", help="fetch the class list of FC-CLIP's and FrozenSeg's programs, for --names official")
    for action in (check, prepare, names):
        action.add_argument("name", metavar="NAME", help="see 'lexiseg data list'")
    for action in (check, prepare):
        action.add_argument("--root", metavar="DIR", help=ROOT)
    for action in (listing, check, prepare, names):
        action.add_argument("--json", action="store_true")
        _debug(action)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="sam_clip-tiny",
        metavar="NAME|hf:OWNER/NAME",
        help="see 'lexiseg models'; or a model on the Hugging Face hub (default: %(default)s)",
    )
    parser.add_argument("--weights", action="append", default=[], metavar="PART=FILE", help="as in 'lexiseg segment'")
    _options(parser)
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="NAME|PATH",
        help="a data set ('lexiseg data list'; mess-* for several), or your own: a folder with pictures and label maps, "
        "a COCO JSON; may be repeated",
    )
    parser.add_argument("--root", metavar="DIR", help=ROOT)
    parser.add_argument("--classes", metavar="NAME|FILE", help="the classes of your own label maps, if no classes.txt is there")
    parser.add_argument("--images", metavar="DIR", help="the pictures of your own data, if not found automatically")
    parser.add_argument("--labels", metavar="DIR", help="its label maps or panoptic PNGs, likewise")
    parser.add_argument(
        "--names",
        metavar="FILE|official",
        help="other names for the classes (synonyms, say), in the data set's order; official: the list that 'lexiseg data "
        "names' fetches",
    )
    parser.add_argument(
        "--task", action="append", choices=TASKS, help="may be repeated (default: all that data and model have)"
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N pictures")
    parser.add_argument("--threshold", type=_unit, default=0.0, metavar="P", help="as in 'lexiseg segment'")
    parser.add_argument("--oracle", choices=("masks", "labels"), help="replace predicted masks, or labels, by the true ones")
    parser.add_argument("--corrupt", metavar="KIND:SEVERITY", help="corrupt the pictures: blur, dark or noise, 1 to 5")
    parser.add_argument(
        "--absent",
        choices=("official", "mess"),
        help="which classes mIoU averages over: those in the ground truth, or also those predicted (default: mess for the data "
        "sets of MESS, else official)",
    )
    parser.add_argument(
        "--exif",
        choices=("upright", "stored"),
        default="upright",
        help="whether ground truth refers to the upright picture or to its pixels as stored, if it has an EXIF orientation and "
        "the sizes do not tell (default: %(default)s)",
    )
    parser.add_argument(
        "--seen",
        metavar="NAME|FILE|official",
        help="class names of the training, in place of the weights' own; adds scores of seen and unseen classes",
    )
    parser.add_argument("--forgive-hypernyms", action="store_true", help="a further mIoU that accepts 'animal' for a dog")
    parser.add_argument("--recall", action="store_true", help="also the class-agnostic recall of the masks")
    parser.add_argument(
        "--speed",
        type=_positive,
        metavar="N",
        help="also seconds and memory of the network, measured on the first N pictures without reading and post-processing",
    )
    parser.add_argument("--keep-going", action="store_true", help="leave out and report what cannot be read or measured")
    parser.add_argument("--save-predictions", action="store_true", help="in COCO's formats and as label maps")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help=f"{BATCH}, at most 16 (default: 1)")
    parser.add_argument(
        "--workers", type=_natural, default=2, metavar="N", help="threads that read pictures ahead (default: 2)"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the metrics; the same command resumes an interrupted run"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document per data set")


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="the name of a model; without it, all recipes are listed")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, such as batch_size=8 lr=2e-4 model.alpha=0.3"
    )
    parser.add_argument("--data", metavar="NAME|PATH", help="in place of the recipe's: a data set, your own, or world:train")
    parser.add_argument("--root", metavar="DIR", help=ROOT)
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="PART=FILE",
        help="local files of clip and sam; fcclip=FOLDER, by method: trained weights of this model to go on from",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="data-loading processes (default: 2)")
    parser.add_argument("--dry-run", action="store_true", help="parameters, memory and the first batch; trains nothing")
    parser.add_argument("--output", metavar="DIR", help="the folder of the training; the same command resumes it")
    parser.add_argument("--json", action="store_true")


def _metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--predictions", required=True, metavar="PATH", help="COCO results, COCO panoptic JSON, or label maps")
    parser.add_argument("--ground-truth", required=True, metavar="PATH", help="the ground truth, in the same format")
    parser.add_argument("--vocabulary", metavar="NAME|FILE", help="the classes of label maps, with their values if it has ids")
    parser.add_argument(
        "--ignore",
        type=_value,
        metavar="VALUE",
        help="the value of label maps to ignore, besides those the vocabulary calls void (default: 255, or 65535 "
        "where the vocabulary has an id of 255 or more)",
    )
    parser.add_argument("--keep-going", action="store_true", help="leave out and report what cannot be measured")
    parser.add_argument("--output", metavar="FILE", help="also write the metrics to this file")
    parser.add_argument("--json", action="store_true")


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the published checkpoint; with --to official, lexiseg's weights")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="its model: fcclip-…, cmpf-…, catseg-…, maskclip-…, sam-vit-b, sam_hq-vit-l, mobile_sam, sam2, mask2former",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR|FILE",
        help="the folder to write; with --to official the file, .safetensors or .pth",
    )
    parser.add_argument("--to", choices=("lexiseg", "official"), default="lexiseg", help="(default: %(default)s)")
    parser.add_argument("--half", action="store_true", help="store matrices and kernels in float16, at half the size")
    parser.add_argument("--json", action="store_true", help="print a report as JSON")


def _figure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        choices=("comparison", "attention", "clusters", "prompts", "points", "pseudo", "correlation", "similarity"),
        help="results of models side by side; attention of a class's query; k-means of features; SAM with box prompts; "
        "SAM-MI's point prompts and masks; ESC-Net's pseudo prompts; its correlations before each block; similarity of "
        "CLIP's patches to a class",
    )
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="files, folders or globs")
    parser.add_argument("--data", metavar="NAME|PATH", help="in place of pictures: a data set, drawn with its ground truth")
    parser.add_argument("--root", metavar="DIR", help=ROOT)
    parser.add_argument("--limit", type=_positive, default=4, metavar="N", help="pictures of the data set (default: 4)")
    parser.add_argument("--skip", type=_natural, default=0, metavar="N", help="pictures of the data set to skip")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--classes", metavar="WORDS", help="as in 'lexiseg segment'")
    words.add_argument("--vocabulary", metavar="NAME|FILE", help="as in 'lexiseg segment'")
    parser.add_argument("--task", choices=TASKS, default="panoptic")
    parser.add_argument(
        "--model",
        action="append",
        metavar="[TITLE:]NAME[,PART=FILE][,OPTION=VALUE]",
        help="may be repeated (default: cmpf-tiny); 'no SAM:cmpf-tiny,cmpf=runs/none/model' is a training of your own",
    )
    parser.add_argument("--most", type=_positive, default=4, metavar="N", help="classes or boxes of a picture (default: 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--font", metavar="FILE", help="write names in this font, .ttf, .otf or .ttc; others fill its gaps")
    parser.add_argument("--output", required=True, metavar="FILE.png")


def _reproduce(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s list [PAPER] [--root DIR] [--json]\n       %(prog)s PAPER TABLE [--tiny] [--output DIR] [...]"
    parser.add_argument("paper", metavar="PAPER", help="cmpf, frozenseg, sam-mi, esc-net or fov-seg; or the word list")
    parser.add_argument(
        "table", nargs="?", metavar="TABLE", help="table6, figure11, readings: 'lexiseg reproduce list' has all"
    )
    parser.add_argument("--tiny", action="store_true", help="the twin: tiny models on the emoji world, offline")
    parser.add_argument("--root", metavar="DIR", help=ROOT)
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of a model, or a file that the list names, in place of those that 'lexiseg fetch' gets; may be repeated",
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some rows only (default: all)")
    parser.add_argument(
        "--seeds", type=_natural, nargs="+", metavar="N", help="of trainings (default: 0 1 2 with --tiny, else 0)"
    )
    parser.add_argument("--steps", type=_positive, metavar="N", help="of each training (default: the table's)")
    parser.add_argument(
        "--scenes",
        type=_positive,
        metavar="N",
        help="pictures of each data set to measure on (default: 200 with --tiny, else all)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--dry-run", action="store_true", help="what is there, what is missing, and the commands; runs nothing")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of trainings and tables (default: runs/PAPER or runs/PAPER-tiny); the same command resumes",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _world(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    render = actions.add_parser("render", help="write scenes as COCO panoptic and as label maps")
    render.add_argument("--split", default="val", metavar="NAME", help="train, val or style (default: %(default)s)")
    render.add_argument("--count", type=_positive, default=100, metavar="N")
    render.add_argument("--size", type=_positive, default=256, metavar="PIXELS")
    render.add_argument("--seed", type=int, default=0)
    render.add_argument("--output", required=True, metavar="DIR")
    render.add_argument("--json", action="store_true")
    _debug(render)


def _number(kind: Callable[[str], float], text: str, fits: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return value


def _value(text: str) -> int:
    return int(_number(int, text, lambda value: -(2**31) <= value < 2**32, "a value that label maps can have"))


def _unit(text: str) -> float:
    return _number(float, text, lambda value: 0 <= value <= 1, "a number in 0..1")


def _point(text: str) -> tuple[float, ...]:
    return _coordinates(text, 2, "a point X,Y in pixels")


def _box(text: str) -> tuple[float, ...]:
    return _coordinates(text, 4, "a box LEFT,TOP,RIGHT,BOTTOM in pixels")


def _coordinates(text: str, count: int, wanted: str) -> tuple[float, ...]:
    values = text.split(",")
    if len(values) != count:
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return tuple(_number(float, value, lambda number: number >= 0, f"a coordinate of {wanted}") for value in values)


def _seconds(text: str) -> float:
    return _number(float, text, lambda value: 0 < value < 1e6, "a number above 0")


def _from_zero(text: str) -> float:
    return _number(float, text, lambda value: 0 <= value < 1e6, "a number of 0 or more")


def _port(text: str) -> int:
    return int(_number(int, text, lambda value: 0 <= value <= 65_535, "a port, 0 to 65535"))


def _natural(text: str) -> int:
    return int(_number(int, text, lambda value: value >= 0, "a number of 0 or more"))


def _positive(text: str) -> int:
    return int(_number(int, text, lambda value: value >= 1, "a whole number of at least 1"))
