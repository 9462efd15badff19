"""DPG-Bench's questions (arXiv 2403.05135), and what answers to them are worth.

Pure functions of the published table and of answers; who answers is vqa.py. The rule is that of
Davidsonian Scene Graph (arXiv 2310.18235): whether the cat is black does not count where no cat is.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cogrpo_core.trajectory import MAX_TEXT
from cogrpo_trainer.evaluate import EvaluationError

WHERE = "dpg_bench/dpg_bench.csv of https://github.com/TencentQQGYLab/ELLA"
MAX_BYTES = 1 << 26
MAX_QUESTIONS = 256  # of a prompt


@dataclass(frozen=True)
class Question:
    """A question about the pictures of one prompt, to be answered yes or no."""

    number: int
    """From 1, within its prompt."""
    text: str
    category: str
    """The broad one: global, entity, attribute, relation or other."""
    needs: frozenset[int]
    """What must be answered yes for it to count: what it depends on, and what that depends on."""


Answered = Mapping[int, bool]
"""Whether each question of a prompt, by its number, was answered yes about one picture."""


class _Row(BaseModel):
    """A line of the table, as far as it is read."""

    model_config = ConfigDict(str_strip_whitespace=True)

    item_id: Annotated[str, Field(min_length=1)]
    proposition_id: Annotated[int, Field(ge=1)]
    dependency: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        BeforeValidator(lambda cell: cell.split(",") if isinstance(cell, str) else cell),
    ]
    """Numbers of the item's propositions; 0 is none."""
    category_broad: Annotated[str, Field(min_length=1)]
    question_natural_language: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


COLUMNS = tuple(_Row.model_fields)


def read(file: Path) -> dict[str, list[Question]]:
    """The questions of every item of dpg_bench.csv, in the order of their numbers.

    Raises `EvaluationError`, which names the line or the item.
    """
    table = csv.DictReader(io.StringIO(_content(file)), strict=True)
    items: dict[str, dict[int, _Row]] = {}
    try:
        for name in COLUMNS:
            if name not in (table.fieldnames or ()):
                raise EvaluationError(f"{file}: has no column {name}; give {WHERE}")
        for cells in table:
            where = f"{file}, line {table.line_num}"
            row = _row(cells, where)
            item = items.setdefault(row.item_id, {})
            if row.proposition_id in item:
                raise EvaluationError(f"{where}: {row.item_id} has this proposition_id already")
            item[row.proposition_id] = row
    except csv.Error as error:
        raise EvaluationError(f"{file}, line {table.line_num}: not CSV ({error})") from None
    if not items:
        raise EvaluationError(f"{file}: holds no question; give {WHERE}")
    return {name: _questions(item, f"{file}, item {name}") for name, item in items.items()}


def said_yes(answer: str) -> bool:
    """Whether an answer's first word is yes."""
    word = re.search(r"\w+", answer)
    return word is not None and word[0].casefold() == "yes"


def counted(questions: Sequence[Question], yes: Answered) -> dict[int, bool]:
    """Whether each question counts: it was answered yes, and so was all that it needs."""
    return {
        one.number: yes[one.number] and all(yes[number] for number in one.needs)
        for one in questions
    }


def score(questions: Sequence[Question], yes: Answered) -> float:
    """A picture's score, in [0, 1]: the share of its prompt's questions that count."""
    return sum(counted(questions, yes).values()) / len(questions)


def _row(cells: Mapping[Any, Any], where: str) -> _Row:
    if None in cells:
        raise EvaluationError(f"{where}: has more cells than there are columns")
    try:
        return _Row.model_validate({name: cells[name] for name in COLUMNS})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise EvaluationError(f"{where}: {first['loc'][0]}: {first['msg']}") from None


def _questions(item: dict[int, _Row], where: str) -> list[Question]:
    if len(item) > MAX_QUESTIONS:
        raise EvaluationError(f"{where}: has more than {MAX_QUESTIONS} questions")
    direct = {number: set(row.dependency) - {0} for number, row in item.items()}
    for number, needs in direct.items():
        for unknown in needs - direct.keys():
            raise EvaluationError(f"{where}: {number} depends on {unknown}, which is not there")
    needed: dict[int, frozenset[int]] = {}
    try:
        for number in TopologicalSorter(direct).static_order():  # what is needed comes first
            needs = direct[number]
            needed[number] = frozenset(needs).union(*(needed[one] for one in needs))
    except CycleError as error:
        circle = ", ".join(map(str, error.args[1]))
        raise EvaluationError(f"{where}: depends on itself in a circle ({circle})") from None
    return [
        Question(number, row.question_natural_language, row.category_broad.lower(), needed[number])
        for number, row in sorted(item.items())
    ]


def _content(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise EvaluationError(f"{file}: is larger than {MAX_BYTES:,} bytes")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise EvaluationError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise EvaluationError(f"{file}: is not UTF-8 text") from None
