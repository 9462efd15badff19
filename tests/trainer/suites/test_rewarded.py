"""ImageReward's and HPSv2's suites by the command, on the embedded model and rewards."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow
import pytest
from pyarrow import parquet

from cogrpo_client.cli import main
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.prompt_files import PromptFileError
from cogrpo_trainer.suites import hpsv2, imagereward
from tests.trainer.suites.conftest import PROMPTS, files

IMAGE_REWARD = ("--suite", "imagereward", "--prompts", PROMPTS / "imagereward.json")
HPS = ("--suite", "hpsv2", "--prompts", PROMPTS / "hpsv2")
QUALITY = ("--reward", "shapes-quality")


def test_imagereward_gives_a_mean_over_prompts(evaluate, tmp_path):
    out = tmp_path / "out"
    said = evaluate(*IMAGE_REWARD, *QUALITY, "--out", out, "--seeds", 2)
    assert said["overall"]["n"] == 5 and said["rows"] == {} and said["seeds"] == 2
    assert said["overall"]["low"] < said["overall"]["score"] < said["overall"]["high"]
    assert said["scored_by"].startswith("shapes-quality ")
    lines = (out / "scores-shapes-quality.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    assert len(scores) == 10
    assert said["overall"]["score"] == pytest.approx(sum(scores) / 10, abs=1e-4)
    assert {path.name for path in (out / "pictures").iterdir()} >= {
        "000001-0001_0.png",
        "000001-0001_1.png",
    }
    # Again: nothing is made, and the same comes out; another reward scores the same pictures.
    before = files(out)
    assert evaluate(*IMAGE_REWARD, *QUALITY, "--out", out, "--seeds", 2) == said
    other = evaluate(*IMAGE_REWARD, "--reward", "shapes-align", "--out", out, "--seeds", 2)
    assert other["overall"]["score"] != said["overall"]["score"]
    after = files(out)
    assert {name: after[name] for name in before} == before


def test_hpsv2_is_by_style_and_average(evaluate, tmp_path):
    said = evaluate(*HPS, *QUALITY, "--out", tmp_path / "out")
    assert list(said["rows"]) == ["Animation", "Concept-art", "Painting", "Photo"]
    assert all(row["n"] == 2 for row in said["rows"].values()) and said["overall"]["n"] == 8
    scores = [row["score"] for row in said["rows"].values()]
    assert said["overall"]["score"] == pytest.approx(sum(scores) / 4, abs=1e-4)
    assert (tmp_path / "out" / "pictures" / "concept-art" / "00001_0.png").is_file()


def test_a_killed_run_goes_on_to_the_same_result(evaluate, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    common = [*IMAGE_REWARD, *QUALITY, "--batch-size", 2, "--steps", 8]
    said = evaluate(*common, "--out", whole)
    arguments = [str(one) for one in ("evaluate", *common, "--out", killed)]
    code = f"from cogrpo_client.cli import main; main({arguments})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(killed.glob("pictures/*.png")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait(30)
    made = {path.read_bytes() for path in whole.glob("pictures/*.png")}
    assert len(made) > 1  # else equal files would say little
    assert len(files(killed)) < len(files(whole))  # killed in the middle, indeed
    assert evaluate(*common, "--out", killed) == said
    assert files(killed) == files(whole)


def test_the_table_has_the_papers_columns(tmp_path, capsys):
    arguments = ("evaluate", "--steps", 1, *HPS, *QUALITY, "--out", tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for word in ("Animation", "Concept-art", "Painting", "Photo", "Averaged", "95 %"):
        assert word in out


def test_settings_must_be_those_of_the_folder(evaluate, refused, tmp_path):
    out = ("--out", tmp_path / "out")
    evaluate(*IMAGE_REWARD, *QUALITY, *out)
    for change, message in (
        (("--steps", 1), "steps 2, and now it is 1"),
        (("--seed", 1), "seed 0, and now it is 1"),
        (("--seeds", 2), "seeds 1, and now it is 2"),
        (("--guidance-scale", 2), "guidance_scale"),
        (("--negative-prompt", "blue"), "negative_prompt"),
        (("--schedule", "cosine-power:2"), "schedule"),
        (HPS, "suite"),
    ):
        assert message in refused(*IMAGE_REWARD, *QUALITY, *out, *change)


def test_what_is_missing_is_one_line(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("COGRPO_REWARDS_DIR", str(tmp_path / "none"))
    out = ("--out", tmp_path / "out")
    assert "benchmark-prompts.json" in refused("--suite", "imagereward", *out)
    assert "zhwang/HPDv2" in refused("--suite", "hpsv2", *out)
    assert "--out FOLDER" in refused(*IMAGE_REWARD)
    assert "cogrpo rewards convert image-reward" in refused(*IMAGE_REWARD, *out)
    assert "cogrpo rewards convert hpsv2" in refused(*HPS, *out)
    assert "unknown reward" in refused(*HPS, *out, "--reward", "mine")
    assert "anime.json" in refused("--suite", "hpsv2", "--prompts", tmp_path, *out)
    assert "--grid" in refused(*HPS, *out, "--grid", tmp_path / "grid.png")
    assert "not for geneval-shapes" in refused(*out)
    assert not (tmp_path / "out").exists()


def test_prompts_by_their_ids(tmp_path):
    """Of the parquet file a row is a picture: its prompt comes once."""
    file = tmp_path / "test.parquet"
    rows = [
        {"prompt_id": i, "prompt": p, "rank": 1} for i, p in (("1", "a"), ("1", "a"), ("2", "b"))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    made = imagereward.pictures(file, 1, 0)
    assert [(one.path, one.prompt) for one in made] == [
        ("pictures/1_0.png", "a"),
        ("pictures/2_0.png", "b"),
    ]
    file = tmp_path / "plain.txt"
    file.write_text("a\nb\na\n")
    assert [one.path for one in imagereward.pictures(file, 1, 0)] == [
        f"pictures/0000{i}_0.png" for i in range(3)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no prompt"),
        ([{"id": "../up", "prompt": "a"}], "no file name"),
        ([{"id": "1", "prompt": "a"}, {"id": "1", "prompt": "b"}], "the id of another"),
        ([{"id": "1", "prompt": " "}], "row 0"),
        ([{"id": "1"}], "row 0 has no prompt"),
        ({"id": "1"}, "not a list"),
    ],
)
def test_prompts_that_cannot_be_used(content, message, tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(content))
    with pytest.raises((EvaluationError, PromptFileError), match=message):
        imagereward.pictures(file, 1, 0)
    for style in hpsv2.STYLES:
        (tmp_path / f"{style}.json").write_text("[]")
    with pytest.raises(EvaluationError, match="no prompts"):
        hpsv2.pictures(tmp_path, 1, 0)
