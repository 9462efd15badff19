"""DPG-Bench's questions: how the table is read, and what counts."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites.dpg_questions import (
    MAX_BYTES,
    MAX_QUESTIONS,
    Question,
    counted,
    read,
    said_yes,
    score,
)
from tests.trainer.suites.conftest import PROMPTS

TABLE = PROMPTS / "dpg_bench.csv"
ASKED = read(TABLE)["0"]


def write(file: Path, *rows: tuple[object, ...], head: str = "") -> Path:
    """A table of item, number, dependency, category and question."""
    names = "item_id proposition_id dependency category_broad question_natural_language"
    with file.open("w", newline="") as lines:
        lines.write(head)
        csv.writer(lines).writerows([names.split(), *rows])
    return file


def test_the_published_columns_are_read() -> None:
    items = read(TABLE)
    assert list(items) == ["0", "long", "another"]
    assert [one.number for one in items["0"]] == [1, 2, 3, 4, 5]
    assert items["0"][4] == Question(
        5, "Is the circle left of the square?", "relation", frozenset({1, 2})
    )
    assert [one.category for one in items["long"]] == ["entity", "entity", "attribute", "global"]


def test_dependencies_reach_through_others_whatever_the_order(tmp_path: Path) -> None:
    file = write(
        tmp_path / "table.csv",
        ("a", 3, "2", "entity", "third?"),
        ("b", 1, "0", "entity", "another's?"),
        ("a", 1, " 0 ", "Entity", " first? "),
        ("a", 2, "1,0", "entity", "second?"),
        head="\ufeff",
    )
    first, second, third = read(file)["a"]
    assert first == Question(1, "first?", "entity", frozenset())
    assert (second.needs, third.needs) == (frozenset({1}), frozenset({1, 2}))


@pytest.mark.parametrize(
    ("no", "share"),
    [
        ((), 1),
        ((5,), 4 / 5),
        ((3, 4), 3 / 5),
        ((1,), 2 / 5),  # and so not its color, and not where it is
        ((1, 3, 5), 2 / 5),
        ((1, 2), 0),
    ],
)
def test_a_score_by_hand(no: tuple[int, ...], share: float) -> None:
    assert score(ASKED, {one.number: one.number not in no for one in ASKED}) == share


def test_a_grandchild_does_not_count_though_its_parent_was_answered_yes() -> None:
    chain = [Question(n, "?", "entity", frozenset(range(1, n))) for n in (1, 2, 3)]
    assert counted(chain, {1: False, 2: True, 3: True}) == {1: False, 2: False, 3: False}
    assert counted(chain, {1: True, 2: False, 3: True}) == {1: True, 2: False, 3: False}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[int, set[int]], dict[int, bool]]:
    """Direct dependencies without a circle, and answers."""
    size = draw(st.integers(1, 8))
    direct = {
        n: draw(st.sets(st.integers(1, n - 1))) if n > 1 else set() for n in range(1, size + 1)
    }
    return direct, {n: draw(st.booleans()) for n in direct}


def closed(direct: dict[int, set[int]]) -> list[Question]:
    needs: dict[int, frozenset[int]] = {}
    for n, some in direct.items():
        needs[n] = frozenset(some).union(*(needs[m] for m in some))
    return [Question(n, "?", "entity", needs[n]) for n in direct]


@given(graphs())
def test_what_counts_is_what_zeroing_again_and_again_leaves(graph) -> None:
    direct, yes = graph
    left = dict(yes)
    for _ in direct:
        left = {n: left[n] and all(left[m] for m in direct[n]) for n in direct}
    found = counted(closed(direct), yes)
    assert found == left
    assert score(closed(direct), yes) == sum(left.values()) / len(left)


@given(graphs(), st.data())
def test_another_yes_never_lowers_a_score(graph, data) -> None:
    direct, yes = graph
    raised = yes | {data.draw(st.sampled_from(sorted(direct))): True}
    asked = closed(direct)
    assert 0 <= score(asked, yes) <= score(asked, raised) <= sum(raised.values()) / len(raised)


@given(graphs(), st.randoms())
def test_the_table_is_read_as_it_was_written(tmp_path_factory, graph, random) -> None:
    direct, _ = graph
    rows = [("a", n, ", ".join(map(str, some or {0})), "entity", "?") for n, some in direct.items()]
    random.shuffle(rows)
    file = write(tmp_path_factory.mktemp("table") / "table.csv", *rows)
    assert read(file) == {"a": closed(direct)}


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("Yes, it is", True),
        (" yes no", True),
        ("no", False),
        ("no yes", False),
        ("yesterday", False),
        ("", False),
        ("?", False),
    ],
)
def test_the_first_word_decides(answer: str, yes: bool) -> None:
    assert said_yes(answer) is yes


GOOD = ("a", 1, "0", "entity", "?")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no question"),
        ([GOOD, GOOD], "line 3: a has this proposition_id already"),
        ([GOOD, ("a", 2, "7", "entity", "?")], "item a: 2 depends on 7, which is not there"),
        (
            [("a", 1, "2", "entity", "?"), ("a", 2, "1", "entity", "?")],
            r"item a: depends on itself in a circle \(",
        ),
        ([("a", 1, "1", "entity", "?")], "in a circle"),
        ([("a", 1, "", "entity", "?")], "line 2: dependency"),
        ([("a", 1, "0;1", "entity", "?")], "line 2: dependency"),
        ([("a", 1, "-1", "entity", "?")], "line 2: dependency"),
        ([("a", 0, "0", "entity", "?")], "line 2: proposition_id"),
        ([("a", "one", "0", "entity", "?")], "line 2: proposition_id"),
        ([("", 1, "0", "entity", "?")], "line 2: item_id"),
        ([("a", 1, "0", "", "?")], "line 2: category_broad"),
        ([("a", 1, "0", "entity", " ")], "line 2: question_natural_language"),
        ([("a", 1, "0", "entity", "?" * 3000)], "line 2: question_natural_language"),
        ([("a", 1, "0", "entity")], "line 2: question_natural_language"),
        ([(*GOOD, "?")], "line 2: has more cells"),
        (
            [("a", n, "0", "entity", "?") for n in range(1, MAX_QUESTIONS + 2)],
            f"item a: has more than {MAX_QUESTIONS} questions",
        ),
    ],
)
def test_tables_that_cannot_be_used(rows, message: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=message) as error:
        read(write(tmp_path / "table.csv", *rows))
    assert "\n" not in str(error.value)


def test_files_that_are_no_table(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    with pytest.raises(EvaluationError, match="cannot be read"):
        read(file)
    file.write_bytes(b"\xff")
    with pytest.raises(EvaluationError, match="not UTF-8"):
        read(file)
    for content in ("", "item_id,text\na,b\n"):
        file.write_text(content)
        with pytest.raises(EvaluationError, match=r"has no column .*dpg_bench\.csv"):
            read(file)
    file.write_text(write(file, GOOD).read_text() + '"a')
    with pytest.raises(EvaluationError, match="not CSV"):
        read(file)
    with file.open("wb") as large:
        large.truncate(MAX_BYTES + 1)
    with pytest.raises(EvaluationError, match="is larger than"):
        read(file)
