"""BLIP's answers, at a small size and with random weights, against transformers' own calls."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipConfig, BlipForConditionalGeneration

from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites import vqa
from cogrpo_trainer.suites.dpg_questions import said_yes
from cogrpo_trainer.suites.vqa import MODEL_FILES, Blip, load_vqa
from tests.trainer.suites.tiny import WORDS, write_vqa

QUESTIONS = (
    "Is there a circle?",
    "Are the two blue circles left of the large green star?",
    "Is the square red?",
    "Is there a heart?",
    "Is the background white and plain?",
    "Is there a star?",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vqa(tmp_path_factory.mktemp("vqa") / "blip")


@pytest.fixture(scope="module")
def blip(folder: Path) -> Blip:
    return load_vqa(str(folder), "cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


@torch.inference_mode()
def by_hand(blip: Blip, image: Image.Image, question: str) -> str:
    """One question alone, a token at a time and with no cache."""
    words = blip.tokenizer(question, return_tensors="pt").input_ids
    pixels = blip.processor(images=image, return_tensors="pt").pixel_values
    seen = blip.model.vision_model(pixel_values=pixels).last_hidden_state
    read = blip.model.text_encoder(input_ids=words, encoder_hidden_states=seen).last_hidden_state
    tokens = [blip.model.decoder_start_token_id]
    while len(tokens) <= vqa.ANSWER_TOKENS and tokens[-1] != WORDS.index("[SEP]"):
        logits = blip.model.text_decoder(
            input_ids=torch.tensor([tokens]), encoder_hidden_states=read, use_cache=False
        ).logits
        tokens.append(int(logits[0, -1].argmax()))
    answer: str = blip.tokenizer.decode(tokens[1:], skip_special_tokens=True)
    return answer


@torch.inference_mode()
def by_transformers(blip: Blip, image: Image.Image, question: str) -> str:
    """One question alone by the model's own `generate`."""
    words = blip.tokenizer(question, return_tensors="pt")
    pixels = blip.processor(images=image, return_tensors="pt").pixel_values
    tokens = blip.model.generate(
        input_ids=words.input_ids,
        attention_mask=words.attention_mask,
        pixel_values=pixels,
        do_sample=False,
        max_new_tokens=vqa.ANSWER_TOKENS,
    )
    answer: str = blip.tokenizer.decode(tokens[0, 1:], skip_special_tokens=True)
    return answer


def test_answers_are_those_of_one_question_at_a_time(
    blip: Blip, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [blip.answers(one, QUESTIONS) for one in pictures]
    for image, answers in zip(pictures, found, strict=True):
        assert answers == [by_transformers(blip, image, one) for one in QUESTIONS]
        assert answers == [by_hand(blip, image, one) for one in QUESTIONS]
    said = [[said_yes(answer) for answer in answers] for answers in found]
    assert len({tuple(some) for some in said}) > 1  # pictures differ
    assert any(len(set(some)) == 2 for some in said)  # and questions
    # In other batches, and again, they are the same.
    monkeypatch.setattr(vqa, "BATCH", 2)
    assert [blip.answers(one, QUESTIONS) for one in pictures] == found
    backwards = blip.answers(pictures[0], QUESTIONS[::-1])
    assert backwards == found[0][::-1]


def test_batches_are_bounded_and_have_no_padding(
    blip: Blip, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Tensor] = []
    watch = blip.model.text_encoder.register_forward_pre_hook(
        lambda module, _, given: asked.append(given["input_ids"]), with_kwargs=True
    )
    monkeypatch.setattr(vqa, "BATCH", 2)
    blip.answers(pictures[0], QUESTIONS)
    watch.remove()
    assert max(len(batch) for batch in asked) == 2
    assert sum(len(batch) for batch in asked) == len(QUESTIONS)
    assert not any((batch == WORDS.index("[PAD]")).any() for batch in asked)


def test_long_questions_are_cut_to_what_is_read(blip: Blip, pictures: list[Image.Image]) -> None:
    start = "is there a red circle left of the blue square and a large plain"  # all 14 words
    answers = blip.answers(
        pictures[0], [f"{start} star and a green heart?", f"{start} star?", start]
    )
    assert answers == [answers[2]] * 3


def test_the_version_is_that_of_the_weights(blip: Blip, folder: Path, tmp_path: Path) -> None:
    other = write_vqa(tmp_path / "other")
    assert load_vqa(str(other), "cpu").version == blip.version
    (other / "vocab.txt").write_text("\n".join([*WORDS, "unused"]))
    assert load_vqa(str(other), "cpu").version != blip.version


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_file_that_is_missing_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    for one in MODEL_FILES:
        if one != name:
            (tmp_path / one).write_bytes((folder / one).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled, and never opened")
    with pytest.raises(EvaluationError, match=f"no {name} .*`cogrpo fetch"):
        load_vqa(str(tmp_path), "cpu")


def test_models_that_do_not_fit_are_errors(folder: Path, tmp_path: Path) -> None:
    other = write_vqa(tmp_path / "other")
    captions = BlipForConditionalGeneration(BlipConfig.from_pretrained(other))
    captions.save_pretrained(other)
    with pytest.raises(EvaluationError, match=r"no BLIP .*weights have no text_encoder\."):
        load_vqa(str(other), "cpu")
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    load_vqa(str(other), "cpu")
    (other / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcd" * 30]))
    (other / "preprocessor_config.json").write_text('{"size": {"height": 64, "width": 64}}')
    with pytest.raises(EvaluationError, match="no BLIP") as error:
        load_vqa(str(other), "cpu")
    assert "\n" not in str(error.value)
    (other / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EvaluationError, match="no BLIP"):
        load_vqa(str(other), "cpu")
