"""The papers' tables and figures as data: all of them, with settings that their models accept, without building any model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lexiseg.cli.parser import build_parser
from lexiseg.cli.segment import options_by_name
from lexiseg.data.published import figures
from lexiseg.errors import UsageError
from lexiseg.methods import MODELS, recipe_named
from lexiseg.methods.base import MethodConfig, check_runtime
from lexiseg.ops.options import readings, with_value
from lexiseg.reproduce import plan
from lexiseg.reproduce.plan import DATA, NOT_DESCRIBED, NOT_HERE, RUNNABLE, WEIGHTS, Missing, Settings
from lexiseg.reproduce.tables import MADE, Row, Sheet, sheet_named, sheets

ROOT = Path(__file__).resolve().parents[2]
# Counted in the papers; SAM-MI's Table 5 to 8 stand among its text, FOV-Seg's Table IV has ten parts.
TABLES = {
    "cmpf": [f"table{number}" for number in range(1, 10)],
    "frozenseg": [f"table{number}" for number in range(1, 10)],
    "sam-mi": [f"table{number}" for number in range(1, 12)],
    "esc-net": [f"table{number}" for number in range(1, 5)],
    "fov-seg": ["tableI", "tableII", "tableIII", *(f"tableIV{letter}" for letter in "abcdefghij")],
}
FIGURES = {"cmpf": 12, "frozenseg": 9, "sam-mi": 10, "esc-net": 6, "fov-seg": 9}
OURS = {"esc-net": ["readings"], "fov-seg": ["figure2a", "readings"]}
ALL = [*sheets(), *sheets(tiny=True)]
PARSER = build_parser()


def title(sheet: Sheet) -> str:
    return f"{sheet.paper}-{sheet.name}{'-tiny' if sheet.tiny else ''}"


def settings(sheet: Sheet) -> Settings:
    return Settings(Path("out"), scenes=plan.SCENES if sheet.tiny else None, seeds=(0, 1), device="cpu")


def steps(sheet: Sheet) -> list[plan.Step]:
    if sheet.draw:
        return list(plan.figure(sheet, sheet.rows, settings(sheet)))
    return [step for run in plan.runs(sheet, sheet.rows, settings(sheet)) for step in run.steps]


@pytest.mark.parametrize("paper", TABLES)
def test_every_table_and_figure_is_listed(paper: str) -> None:
    drawn = [f"figure{number}" for number in range(1, FIGURES[paper] + 1)]
    assert [sheet.name for sheet in sheets(paper)] == [*TABLES[paper], *OURS.get(paper, []), *drawn]
    printed = {figure.table for figure in figures() if figure.paper == paper}
    assert len(printed) == len(TABLES[paper]) + ("figure2a" in OURS.get(paper, []))


def test_rows_are_those_of_the_paper() -> None:
    for sheet in sheets():
        numbers = [row.number for row in sheet.rows if row.number is not None]
        assert max(Counter([row.name for row in sheet.rows]).values(), default=1) == 1, title(sheet)
        assert len(numbers) == len(set(numbers)), title(sheet)
        assert all(row.published for row in sheet.rows if row.number is not None), f"{title(sheet)}: no row of that number"
        table = sheet.name.removeprefix("table")
        printed = {figure.row for figure in figures() if (figure.paper, figure.table) == (sheet.paper, table)}
        assert sheet.reason or len(printed) == len(sheet.quoted) + len(numbers) or sheet.name == "figure2a", title(sheet)
        if sheet.base:
            twin = sheet_named(sheet.paper, sheet.name, tiny=True)
            assert sheet.base in {row.name for row in (*sheet.rows, *twin.rows)}, title(sheet)


def test_settings_fit_the_models() -> None:
    configs: dict[tuple[str, tuple[str, ...]], MethodConfig] = {}
    for sheet in ALL:
        for row in sheet.rows:
            if row.reason:
                continue
            origin = sheet.origin(row)
            model = MODELS[origin.model]
            key = origin.model, origin.train or ()
            if plan.trains(origin, {}) and key not in configs:
                recipe = plan.recipe_of(sheet, origin, 3, 7)
                configs[key] = recipe.model
                assert recipe.seed == 3
            config = configs.get(key, model.config)
            options = options_by_name(list(row.set))
            check_runtime(config, options, row.name)
            for name, value in options.items():
                config = with_value(config, name, *readings(value), owner=row.name)
            assert {*row.weights, *origin.weights} <= {part.name for part in model.parts}, title(sheet)


def test_commands_are_accepted() -> None:
    for sheet in ALL:
        for step in dict.fromkeys(steps(sheet)):
            PARSER.parse_args(step.words)
        assert steps(sheet) or not sheet.rows or all(row.reason for row in sheet.rows), title(sheet)


@pytest.mark.parametrize("tiny", [False, True])
def test_equal_names_of_a_paper_are_equal_trainings(tiny: bool) -> None:
    """So the tables of a paper may share an output folder."""
    trainings: dict[tuple[str, Path], set[tuple[str, ...]]] = {}
    for sheet in sheets(tiny=tiny):
        for step in steps(sheet):
            if step.words[0] == "train":
                trainings.setdefault((sheet.paper, step.result), set()).add(step.words)
    assert trainings
    assert {key: words for key, words in trainings.items() if len(words) > 1} == {}


def test_no_two_commands_write_into_one_folder() -> None:
    for sheet in ALL:
        folders = Counter(step.result for step in dict.fromkeys(steps(sheet)))
        assert max(folders.values(), default=1) == 1, title(sheet)


def test_descriptions_are_of_models_as_they_are() -> None:
    for sheet in ALL:
        if any(column.dataset == MADE for column in sheet.columns):
            changed = [setting for row in sheet.rows for setting in row.train or () if setting.startswith("model.")]
            assert not changed, "`lexiseg models --describe` shows a model without settings"


@pytest.mark.parametrize("total", [1, 2, 300, 1001])
def test_steps_are_divided_among_the_stages(total: int) -> None:
    sheet = sheet_named("sam-mi", "table3", tiny=True)
    counts = [stage.steps for stage in plan.recipe_of(sheet, sheet.row("sam_mi"), 0, total).stages]
    recipe = recipe_named("sam_mi-tiny")
    assert sum(counts) == max(2, total)
    assert total < 300 or counts[0] / total == pytest.approx(recipe.stages[0].steps / recipe.steps, abs=0.01)


@pytest.mark.parametrize(
    ("paper", "table", "name"),
    [
        ("cmpf", "table6", "table6"),
        ("CMPF", "6", "table6"),
        ("cmpf", "Table 6", "table6"),
        ("cmpf", "fig. 11", "figure11"),
        ("sam_mi", "tab5", "table5"),
        ("fovseg", "IVa", "tableIVa"),
        ("FOV-Seg", "Fig. 2a", "figure2a"),
        ("escnet", "readings", "readings"),
    ],
)
def test_names_may_be_written_in_several_ways(paper: str, table: str, name: str) -> None:
    assert sheet_named(paper, table).name == name


@pytest.mark.parametrize(
    ("paper", "table", "words"),
    [
        ("cmpf", "table10", "no table 'table10' of cmpf; it has table1, table2"),
        ("cmpf", "readings", "no table 'readings' of cmpf"),
        ("sam_m", "table1", "no paper 'sam_m': did you mean sam-mi"),
        ("mask2former", "table1", "no paper 'mask2former': there are cmpf, frozenseg, sam-mi, esc-net, fov-seg"),
    ],
)
def test_unknown_names_are_told(paper: str, table: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sheet_named(paper, table)


def test_what_is_missing_decides_the_mark() -> None:
    assert Missing().mark == RUNNABLE
    assert Missing(weights=("a",)).mark == WEIGHTS
    assert Missing(lists=("a",)).mark == Missing(data=("a",), weights=("b",)).mark == DATA
    assert Missing(reason="not here: because").mark == NOT_HERE
    assert Missing(reason="not here: because").why == "because"
    assert Missing(reason="unclear").mark == NOT_DESCRIBED
    assert Missing(("a", "mess-x", "mess-y"), ("c",), ("d",)).why == "a, mess-* (2); official class list of c; weights d"


def test_states_on_a_machine_without_data(tmp_path: Path) -> None:
    states = {(sheet.paper, sheet.name): plan.state(sheet, str(tmp_path)) for sheet in sheets()}
    marks = Counter(entry.mark for entry in states.values())
    assert set(marks) == {RUNNABLE, DATA, NOT_HERE, NOT_DESCRIBED, plan.DRAWING}
    assert states["esc-net", "table4"].mark == RUNNABLE, "parameters, operations and speed need no data"
    assert states["cmpf", "table8"].why.endswith("weights mobile_sam, cmpf-convnext-l")
    assert all(entry.why for entry in states.values() if entry.mark not in (RUNNABLE, plan.DRAWING))
    twins = {(sheet.paper, sheet.name): plan.state(sheet, str(tmp_path)) for sheet in sheets(tiny=True) if sheet.rows}
    partly = {name for name, entry in twins.items() if entry.mark != RUNNABLE}
    assert partly == set(), "a twin needs nothing"


def test_weights_by_hand_are_taken_from_the_user() -> None:
    sheet = sheet_named("sam-mi", "table9")
    assert plan.missing(sheet, sheet.row("mobile-sam"), None, {}).weights == ("mobile_sam",)
    given = {"mobile_sam": "here.pt", "sam_mi-vit-b16": "mine"}
    assert plan.missing(sheet, sheet.row("mobile-sam"), None, given).weights == ()
    run = next(iter(plan.runs(sheet, [sheet.row("mobile-sam")], Settings(Path("out"), weights=given))))
    assert run.seed is None, "the given weights need no training"
    assert all({"sam_mi=mine", "sam=here.pt"} <= {*step.words} for step in run.steps if step.words[0] == "evaluate")


def test_the_ensemble_of_masks_is_where_the_numbers_contain_it() -> None:
    sheet = sheet_named("cmpf", "table1")
    words = {step.words[step.words.index("--data") + 1]: step.words for step in steps(replaced(sheet, "cmpf"))}
    assert "mask_sam=facebook/sam-vit-huge" in words["ade20k-150"]
    assert "mask_sam=facebook/sam-vit-huge" not in words["cityscapes"]
    assert words["cityscapes"][words["cityscapes"].index("--names") + 1] == "official"


def replaced(sheet: Sheet, name: str) -> Sheet:
    """A sheet with one of its rows."""
    rows: tuple[Row, ...] = (sheet.row(name),)
    return replace(sheet, rows=rows)


def test_the_list_of_what_cannot_be_had_is_that_of_the_data() -> None:
    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    section = page.split("## What cannot be had")[1].split("\n## ")[0]
    listed = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    expected = []
    for sheet in sheets():
        reasons = [(sheet.caption, sheet.reason), *((row.title, row.reason) for row in sheet.rows)]
        missing = [(what, Missing(reason=reason)) for what, reason in reasons if reason]
        expected += [f"| {sheet.paper} {sheet.name} | {what} | {entry.mark} | {entry.why} |" for what, entry in missing]
    assert listed == expected
