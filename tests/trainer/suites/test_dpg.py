"""DPG-Bench: grids that its own scorer cuts apart again, and scores by questions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageColor

from cogrpo_client.cli import main
from cogrpo_core.models.hub import EMBEDDED_FOLDER
from cogrpo_core.models.text_encoder import TextEncoder
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites import dpg
from cogrpo_trainer.suites.dpg_questions import said_yes
from cogrpo_trainer.suites.pictures import Picture, samples
from cogrpo_trainer.suites.report import interval, ratio
from cogrpo_trainer.suites.vqa import MODEL_FILES, Blip
from tests.trainer.suites.conftest import PROMPTS, files
from tests.trainer.suites.tiny import write_vqa

DPG = ("--suite", "dpg", "--prompts", PROMPTS / "dpg")
TABLE = PROMPTS / "dpg_bench.csv"
MADE = [
    Picture(f"samples/{('0', 'long')[one.case]}/{one.j}.png", "a prompt", one.seed, one.case, "")
    for one in samples(2, 2, 0)
]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vqa(tmp_path_factory.mktemp("vqa") / "blip")


class Stopped(Exception):
    """The run was killed."""


class Answerer:
    """Says yes to what is red, or blue; stops at its `last` picture."""

    name = "answerer"
    version = "1"

    def __init__(self, last: int = 99) -> None:
        self.asked: list[list[str]] = []
        self.last = last

    def answers(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        self.asked.append(list(questions))
        if len(self.asked) == self.last:
            raise Stopped
        return ["yes" if "red" in one or "blue" in one else "no" for one in questions]


def test_grids_are_named_as_the_prompts_and_hold_the_samples(evaluate: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = evaluate(*DPG, "--out", out)
    assert said == {
        "suite": "dpg",
        "pictures": 8,
        "folder": str(out),
        "grids": str(out / "grids"),
        "resolution": 64,
    }
    assert sorted(path.name for path in (out / "grids").iterdir()) == ["0.png", "long.png"]
    sheet = np.asarray(Image.open(out / "grids" / "0.png"))
    assert sheet.shape == (128, 128, 3)
    corners = [sheet[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    for j, corner in enumerate(corners):
        assert np.array_equal(corner, np.asarray(Image.open(out / "samples" / "0" / f"{j}.png")))
    before = files(out)
    (out / "grids" / "0.png").unlink()
    assert evaluate(*DPG, "--out", out) == said
    assert files(out) == before


def test_a_grid_is_read_row_by_row() -> None:
    colors = ["red", "green", "blue", "white"]
    sheet = dpg.grid([Image.new("RGB", (4, 4), color) for color in colors])
    seen = [sheet.getpixel(at) for at in ((0, 0), (4, 0), (3, 4), (7, 7))]
    assert seen == [ImageColor.getrgb(color) for color in colors]


def test_one_picture_is_its_own_grid(evaluate: Any, tmp_path: Path) -> None:
    evaluate(*DPG, "--out", tmp_path, "--seeds", 1)
    grid = np.asarray(Image.open(tmp_path / "grids" / "0.png"))
    assert np.array_equal(grid, np.asarray(Image.open(tmp_path / "samples" / "0" / "0.png")))


def test_other_numbers_and_folders_are_refused(refused: Any, tmp_path: Path) -> None:
    assert "--seeds is 4 or 1" in refused(*DPG, "--out", tmp_path / "out", "--seeds", 3)
    assert "dpg_bench/prompts" in refused("--suite", "dpg", "--out", tmp_path / "out")
    with pytest.raises(EvaluationError, match=r"no \*\.txt"):
        dpg.pictures(tmp_path, 4, 0)
    (tmp_path / "0.txt").write_text(" ")
    with pytest.raises(EvaluationError, match="is empty"):
        dpg.pictures(tmp_path, 4, 0)
    (tmp_path / "0.txt").write_bytes(b"\xff")
    with pytest.raises(EvaluationError, match="UTF-8"):
        dpg.pictures(tmp_path, 4, 0)


def test_long_prompts_are_cut_to_what_is_read() -> None:
    encoder = TextEncoder.from_pretrained(EMBEDDED_FOLDER / "shapes")
    text = (PROMPTS / "dpg" / "long.txt").read_text()
    assert encoder.token_count(text) > encoder.max_length
    cut = encoder.shortened(text)
    assert text.startswith(cut) and text[len(cut)] == " "
    longer = text[: text.index(" ", len(cut) + 1)]
    assert encoder.token_count(cut) <= encoder.max_length < encoder.token_count(longer)
    assert encoder.shortened("a red circle") == "a red circle"
    assert encoder.shortened("x" * 5000)


def test_the_suite_from_prompts_to_scores(evaluate: Any, blip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asking = ("--questions", TABLE, "--vqa", blip)
    said = evaluate(*DPG, *asking, "--out", out)
    assert said["suite"] == "dpg" and said["seeds"] == 4 and said["overall"]["n"] == 2
    assert said["scored_by"].startswith("blip-vqa ")
    assert {name: row["n"] for name, row in said["rows"].items()} == {
        "attribute": 2,
        "entity": 2,
        "global": 1,
        "relation": 1,
    }
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [row["filename"] for row in rows] == [
        f"samples/{name}/{j}.png" for name in ("0", "long") for j in range(4)
    ]
    yes = {
        (row["filename"], int(number)): said_yes(answer)
        for row in rows
        for number, answer in row["answers"].items()
    }
    assert len(yes) == 4 * 5 + 4 * 4 and set(yes.values()) == {True, False}
    # By hand: a prompt's score is over its pictures, and what is not there has no color.
    of_prompt: dict[str, list[float]] = {"0": [], "long": []}
    for row in rows:
        name = row["filename"]
        a = {number: yes[name, number] for number in range(1, len(row["answers"]) + 1)}
        if "long" in name:
            held = [a[1], a[2], a[1] and a[3], a[4]]
        else:
            held = [a[1], a[2], a[1] and a[3], a[2] and a[4], a[1] and a[2] and a[5]]
        of_prompt[Path(name).parent.name].append(sum(held) / len(held))
    by_hand = [sum(some) / 4 for some in of_prompt.values()]
    assert said["overall"]["score"] == pytest.approx(sum(by_hand) / 2, abs=1e-4)
    attributes = [yes[f"samples/0/{j}.png", number] for j in range(4) for number in (3, 4)]
    attributes += [yes[f"samples/long/{j}.png", 3] for j in range(4)]
    assert said["rows"]["attribute"]["score"] == pytest.approx(sum(attributes) / 12, abs=1e-4)
    # Answers that were lost come again as they were; pictures stay.
    before = files(out)
    whole = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join(whole[:3]) + whole[3][:20])
    assert evaluate(*DPG, *asking, "--out", out) == said
    assert files(out) == before
    # Without questions the same folder is for the benchmark's own scorer.
    assert evaluate(*DPG, "--out", out)["resolution"] == 64


def test_the_table_is_in_percent(
    blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--steps", 1, "--seeds", 1, "--questions", TABLE, "--vqa", blip)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *(str(one) for one in (*DPG, *arguments, "--out", tmp_path / "out"))])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for word in ("times 100", "attribute", "entity", "global", "relation", "overall", "95 %"):
        assert word in out


def test_answers_go_on_where_they_stopped(tmp_path: Path) -> None:
    for one in MADE:
        (tmp_path / one.path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / one.path)
    asked = dpg.questions(TABLE, MADE)
    with pytest.raises(Stopped):
        dpg.ask(tmp_path, asked, MADE, cast(Blip, Answerer(last=3)))
    again, told = Answerer(), list[int]()
    yes = dpg.ask(tmp_path, asked, MADE, cast(Blip, again), on_progress=told.append)
    assert again.asked == [[one.text for one in asked[1]]] * 2
    assert told == [2, 1, 1]
    assert yes["samples/0/0.png"] == {1: False, 2: False, 3: True, 4: True, 5: False}
    assert yes == dpg.ask(tmp_path, asked, MADE, cast(Blip, Answerer(last=1)))
    newer = Answerer()
    newer.version = "2"
    with pytest.raises(EvaluationError, match="scores by answerer 1 to questions"):
        dpg.ask(tmp_path, asked, MADE, cast(Blip, newer))
    changed = tmp_path / "changed.csv"
    changed.write_text(TABLE.read_text().replace("Is there a star?", "Is there one star?"))
    with pytest.raises(EvaluationError, match=r"to questions \w+, and now"):
        dpg.ask(tmp_path, dpg.questions(changed, MADE), MADE, cast(Blip, Answerer()))
    # What an answer is worth may be mended: nothing is asked again.
    changed.write_text(TABLE.read_text().replace('5,"1, 2"', "5,0"))
    mended = dpg.questions(changed, MADE)
    assert dpg.ask(tmp_path, mended, MADE, cast(Blip, Answerer(last=1))) == yes


def test_categories_are_of_the_answers_alone() -> None:
    asked = dpg.questions(TABLE, MADE)
    yes = {
        one.path: {each.number: each.category == "attribute" for each in asked[one.case]}
        for one in MADE
    }
    rows, overall = dpg.means(asked, MADE, yes)
    assert {name: row.score for name, row in rows.items()} == {
        "attribute": 1,
        "entity": 0,
        "global": 0,
        "relation": 0,
    }
    assert (overall.score, overall.n) == (0, 2)
    yes = {one.path: {each.number: True for each in asked[one.case]} for one in MADE}
    yes["samples/0/1.png"][1] = False  # and its color, and where it is
    rows, overall = dpg.means(asked, MADE, yes)
    assert overall.score == pytest.approx(((1 + 2 / 5) / 2 + 1) / 2)
    assert rows["entity"].score == pytest.approx(7 / 8)
    assert rows["attribute"].score == 1 and rows["relation"].score == 1


def test_a_ratio_is_of_sums_with_an_interval_over_prompts() -> None:
    values = [0.0, 0.5, 1.0, 1.0]
    assert ratio([4 * one for one in values], [4] * 4) == interval(values)
    assert ratio([1, 3], [2, 3]).score == pytest.approx(4 / 5)
    one = ratio([1], [2])
    assert (one.score, one.n) == (0.5, 1) and np.isnan(one.low)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        counts = rng.integers(1, 9, 200)
        found = ratio(rng.binomial(counts, 0.2 + 0.05 * counts).tolist(), counts.tolist())
        truth = sum(n * (0.2 + 0.05 * n) for n in range(1, 9)) / sum(range(1, 9))
        inside += found.low < truth < found.high
    assert 0.92 < inside / 400 < 0.98


def test_what_questions_lack_is_one_line(refused: Any, blip: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    line = refused(*DPG, *out, "--questions", TABLE)
    wanted = " ".join(f"--include {name}" for name in MODEL_FILES)
    assert f"`cogrpo fetch Salesforce/blip-vqa-base {wanted}`" in line
    table = tmp_path / "table.csv"
    table.write_text(TABLE.read_text().replace("\nlong,", "\nlonger,"))
    asking = ("--questions", table, "--vqa", blip)
    assert "no question about long.txt" in refused(*DPG, *out, *asking)
    table.write_text(TABLE.read_text().replace("dependency", "depends"))
    assert "has no column dependency" in refused(*DPG, *out, *asking)
    other = ("--suite", "imagereward", "--prompts", PROMPTS / "imagereward.json")
    assert "--questions is for dpg" in refused(*other, *out, *asking)
    assert "not for geneval-shapes" in refused(*asking)
    assert not (tmp_path / "out").exists()
