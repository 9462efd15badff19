"""Files of prompts: every layout that training takes, mixed, each prompt once, with a count."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from cogrpo_core.trajectory import MAX_TEXT
from cogrpo_trainer import prompt_files
from cogrpo_trainer.prompt_files import PromptFileError, find_file, read_prompts
from cogrpo_trainer.train.config import ConfigError, TrainConfig, load_config
from cogrpo_trainer.train.prompts import Prompts

FOLDER = Path(__file__).parents[1] / "data" / "prompts"
SAMPLE = [FOLDER / "training.json", FOLDER / "training.jsonl"]


def test_the_sample_is_read_without_repeats() -> None:
    found = read_prompts(SAMPLE)
    assert found.prompts == [
        "A red circle on a white table",
        "two blue stars above a green square",
        "a yellow ring, oil on canvas",
        "a purple heart in the rain",
    ]
    assert (found.read, found.repeated, found.unusable) == (7, 2, 1)
    assert str(found) == ("4 prompts: 7 read, 2 repeated ones and 1 empty or too long ones dropped")


def test_a_list_of_texts_a_text_file_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(["one", "two"]))
    (tmp_path / "lines.txt").write_text("two\nthree\u2028and more\n\n")
    rows = [{"prompt_id": "1", "prompt": "four", "rank": 1}, {"prompt_id": "1", "prompt": "four"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "metadata-train.parquet")
    found = read_prompts([tmp_path / name for name in sorted(p.name for p in tmp_path.iterdir())])
    assert found.prompts == ["two", "three\u2028and more", "one", "four"]


def test_all_prompts_of_a_mixture_are_drawn_alike(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\n".join(f"many {i}" for i in range(30)))
    (tmp_path / "few.txt").write_text("\n".join(f"few {i}" for i in range(10)))
    prompts = Prompts([str(tmp_path / "many.txt"), str(tmp_path / "few.txt")])
    drawn = Counter(text for i in range(300) for text in prompts.draw(4, seed=1, iteration=i))
    assert len(drawn) == 40
    few = sum(count for text, count in drawn.items() if text.startswith("few"))
    assert 0.2 < few / 1200 < 0.3  # a quarter of the prompts
    assert prompts.lines is not None and len(prompts.lines) == 40


def test_prompts_are_as_short_as_they_must_be(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one two three\n")
    prompts = Prompts(str(tmp_path / "prompts.txt"))
    prompts.shortened = lambda text: text.split()[0]
    assert prompts.draw(2, seed=0, iteration=0) == ["one", "one"]


def test_too_long_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("x" * (MAX_TEXT + 1) + "\nshort\n")
    found = read_prompts([tmp_path / "prompts.txt"])
    assert (found.prompts, found.unusable) == (["short"], 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", r"a\.json: not valid JSON"),
        ("a.json", '{"prompt": "a"}', "a JSON dict, not a list"),
        ("a.json", "[1]", "row 0 has no prompt"),
        ("a.json", '["a", {"caption": "b"}]', "row 1 has no prompt"),
        ("a.json", '[{"prompt": 1}]', "row 0 has no prompt"),
        ("a.jsonl", '"a"\n{', r"a\.jsonl, line 2: not valid JSON"),
        ("a.txt", " \n\n", "holds no prompt"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "not a parquet file"),
        ("a.parquet", b"", "not a parquet file"),
        ("none.json", None, "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_line(name, content, message, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(PromptFileError, match=message) as caught:
        read_prompts([tmp_path / name])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=message):
        Prompts(str(tmp_path / name))


def test_parquet_without_prompts_and_files_without_end(tmp_path, monkeypatch) -> None:
    parquet.write_table(pyarrow.table({"caption": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(PromptFileError, match="no column prompt or text"):
        read_prompts([tmp_path / "a.parquet"])
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "b.parquet")
    assert read_prompts([tmp_path / "b.parquet"]).prompts == ["a", "b"]
    monkeypatch.setattr(prompt_files, "MAX_ROWS", 1)
    with pytest.raises(PromptFileError, match="more than 1 rows"):
        read_prompts([tmp_path / "b.parquet"])
    monkeypatch.setattr(prompt_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(PromptFileError, match="larger than 10 bytes"):
        read_prompts([tmp_path / "b.parquet"])


def test_a_file_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.json").write_text('["a red circle"]')
    asked: list[tuple[object, ...]] = []

    def download(repo_id: str, filename: str, *, repo_type: str, revision: str | None, **_) -> str:
        asked.append((repo_id, filename, repo_type, revision))
        return str(tmp_path / "train.json")

    monkeypatch.setattr(prompt_files, "hf_hub_download", download)
    for revision, part in ((None, ""), ("v1.0", "@v1.0")):
        name = f"hf://datasets/ymhao/HPDv2{part}/data/train.json"
        assert Prompts(name).lines == ["a red circle"]
        assert asked[-1] == ("ymhao/HPDv2", "data/train.json", "dataset", revision)
    assert find_file("some/prompts.txt") == Path("some/prompts.txt")
    for wrong in ("hf://ymhao/HPDv2", "hf://datasets/HPDv2/", "hf://datasets/a/b/../../c.json"):
        with pytest.raises(PromptFileError, match="give hf://datasets/OWNER/NAME"):
            find_file(wrong)


def test_without_network_a_file_of_the_hub_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be fetched .*hf download --repo-type dataset"):
        Prompts("hf://datasets/ymhao/HPDv2/train.json")


def test_the_config_takes_one_file_or_several() -> None:
    several = load_config("shapes", None, ['prompts=["a.json", "b.parquet"]'])
    assert several.prompts == ("a.json", "b.parquet")
    assert load_config("shapes", None, ["prompts=a.txt"]).prompts == "a.txt"
    again = TrainConfig.model_validate_json(several.model_dump_json())
    assert again == several
    with pytest.raises(ConfigError, match="prompts"):
        load_config("shapes", None, ["prompts=[]"])
