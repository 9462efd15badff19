"""GenEval from prompts to verdicts, with both models at a small size and random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cogrpo_core.shapes.render import render
from cogrpo_core.shapes.scenes import sample_scene
from cogrpo_core.shapes.suites import suite
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites import geneval
from cogrpo_trainer.suites.detector import (
    CLASSES,
    COLOR_MODEL,
    DETECTOR,
    TEMPLATES,
    Detector,
    load_detector,
)
from cogrpo_trainer.suites.folders import find
from cogrpo_trainer.suites.geneval_rules import COLORS, TASKS, Detection
from tests.trainer.suites.conftest import PROMPTS, files
from tests.trainer.suites.tiny import write_color_model, write_detector

METADATA = PROMPTS / "evaluation_metadata.jsonl"
GENEVAL = ("--suite", "geneval", "--prompts", METADATA)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("seers")
    return write_detector(folder / "objects"), write_color_model(folder / "colors")


@pytest.fixture(scope="module")
def detector(folders: tuple[Path, Path]) -> Detector:
    return load_detector(str(folders[0]), str(folders[1]), "cpu")


@pytest.fixture
def picture() -> Image.Image:
    spec = suite("geneval-shapes", 1)[0].spec
    return Image.fromarray(render(sample_scene(spec, np.random.default_rng(0))))


def test_objects_are_what_transformers_gives(detector: Detector, picture: Image.Image) -> None:
    found = detector.objects(picture)
    inputs = detector.processor(images=picture, return_tensors="pt")
    with torch.inference_mode():
        outputs = detector.model(**inputs)
    (theirs,) = detector.processor.post_process_instance_segmentation(
        outputs, threshold=0.3, target_sizes=[(64, 64)], return_binary_maps=True
    )
    assert len(found) == len(theirs["segments_info"]) > 0
    for one, info, mask in zip(found, theirs["segments_info"], theirs["segmentation"], strict=True):
        assert (one.name, one.confidence) == (CLASSES[info["label_id"]], info["score"])
        assert one.mask is not None and one.mask.shape == (64, 64)
        assert np.array_equal(one.mask, mask.numpy() > 0)
        left, top, right, bottom = (int(side) for side in one.box)
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
        outside = one.mask.copy()
        outside[top:bottom, left:right] = False
        assert not outside.any()
        assert one.mask[top].any() and one.mask[:, right - 1].any()


def test_nothing_found_is_an_empty_list(folders: tuple[Path, Path], picture: Image.Image) -> None:
    detector = load_detector(str(folders[0]), str(folders[1]), "cpu")
    with torch.no_grad():
        detector.model.class_predictor.weight.zero_()
    assert detector.objects(picture) == []


def test_colors_are_the_nearest_of_the_templates_means(
    detector: Detector, picture: Image.Image
) -> None:
    mask = np.zeros((64, 64), bool)
    mask[10:30, 20:50] = True
    some = [
        Detection("cup", 0.9, (20, 10, 50, 30), mask),
        Detection("cup", 0.8, (0, 0, 64, 64)),
    ]
    pixels = np.asarray(picture).copy()
    pixels[~mask] = 0x99
    crops = [Image.fromarray(pixels).crop((20, 10, 50, 30)), picture]
    with torch.inference_mode():
        seen = torch.cat([detector.clip.encode_image(detector.transform(c)[None]) for c in crops])
        means = []
        for color in COLORS:
            texts = [template.format(c=color, name="cup") for template in TEMPLATES]
            said = detector.clip.encode_text(detector.tokenizer(texts), normalize=True)
            means.append(F.normalize(said.mean(dim=0), dim=0))
    best = (F.normalize(seen, dim=1) @ torch.stack(means).T).argmax(dim=1)
    assert detector.colors(picture, "cup", some) == [COLORS[i] for i in best]


def test_the_suite_from_prompts_to_verdicts(evaluate: Any, folders: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seers = ("--detector", folders[0], "--color-model", folders[1])
    said = evaluate(*GENEVAL, *seers, "--out", out, "--seeds", 2)
    assert list(said["rows"]) == list(TASKS)
    assert all(
        row["n"] == 1 and 0 <= row["low"] <= row["high"] <= 1 for row in said["rows"].values()
    )
    assert said["overall"]["n"] == 6 and said["seeds"] == 2
    lines = METADATA.read_text().splitlines()
    for i, line in enumerate(lines):
        assert json.loads((out / f"{i:05d}" / "metadata.jsonl").read_text()) == json.loads(line)
        names = sorted(path.name for path in (out / f"{i:05d}" / "samples").iterdir())
        assert names == ["00000.png", "00001.png"]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert row.keys() >= {
            "filename",
            "tag",
            "prompt",
            "correct",
            "reason",
            "metadata",
            "details",
        }
        assert row["correct"] == (row["reason"] == "")
        for boxes in json.loads(row["details"]).values():
            assert all(len(box) == 5 for box in boxes)
    # Verdicts that were lost come again as they were; pictures stay.
    before = files(out)
    whole = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(whole[:5]))
    assert evaluate(*GENEVAL, *seers, "--out", out, "--seeds", 2) == said
    assert files(out) == before


def test_pictures_alone_need_no_detector(evaluate: Any, tmp_path: Path) -> None:
    said = evaluate(*GENEVAL, "--out", tmp_path / "out", "--pictures-only")
    assert said == {"suite": "geneval", "pictures": 24, "folder": str(tmp_path / "out")}
    assert len(list((tmp_path / "out").glob("*/samples/*.png"))) == 24


def test_what_is_missing_is_one_line(
    refused: Any, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", tmp_path / "out")
    line = refused(*GENEVAL, *out)
    assert f"cogrpo fetch {DETECTOR} --include config.json" in line
    assert f"cogrpo fetch {COLOR_MODEL}" in refused(*GENEVAL, *out, "--detector", folders[0])
    assert "evaluation_metadata.jsonl" in refused("--suite", "geneval", *out)
    assert "leave --reward out" in refused(*GENEVAL, *out, "--reward", "hpsv2")
    assert not (tmp_path / "out").exists()


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "models--somebody--something", "0" * 40
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    with pytest.raises(EvaluationError, match=r"no a\.json .*`cogrpo fetch somebody/something"):
        find("somebody/something", ["a.json"])
    (snapshot / "a.json").write_text("{}")
    assert find("somebody/something", ["a.json"]) == snapshot
    assert find(f"somebody/something@{commit}", ["a.json"]) == snapshot
    with pytest.raises(EvaluationError, match=r"no b\.json"):
        find("somebody/something", ["a.json", "b.json"])


def test_models_that_do_not_fit_are_errors(folders: tuple[Path, Path], tmp_path: Path) -> None:
    others = write_detector(tmp_path / "others", ("cat", "dog"))
    with pytest.raises(EvaluationError, match="its 2 classes are not COCO's"):
        load_detector(str(others), str(folders[1]), "cpu")
    (others / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EvaluationError, match="no Mask2Former"):
        load_detector(str(others), str(folders[1]), "cpu")
    colors = write_color_model(tmp_path / "colors")
    (colors / "open_clip_config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="no open_clip model"):
        load_detector(str(folders[0]), str(colors), "cpu")


def test_the_version_is_that_of_both_models(folders: tuple[Path, Path], detector: Detector) -> None:
    again = load_detector(str(folders[0]), str(folders[1]), "cpu")
    assert again.version == detector.version and len(set(detector.version.split())) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"tag": "smell"}', "line 1: not GenEval's"),
        ("", "holds no prompt"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "metadata.jsonl"
    file.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        geneval.read(file)
