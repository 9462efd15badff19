"""Who answers for DPG-Bench: transformers' BLIP for visual question answering (arXiv 2201.12086).

The benchmark's own mPLUG is in no library that we use. Nothing is downloaded here, and nothing is
unpickled.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cogrpo_core.models.weights import one_line
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites.folders import find, version

MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt")
BATCH = 32  # questions at once
ANSWER_TOKENS = 8


class Blip:
    """Answers questions about pictures, greedily; `version` changes with the weights.

    Shape letters: B questions of L tokens, P patches of a picture, D width.
    """

    def __init__(self, folder: Path, device: str) -> None:
        """Raises `EvaluationError` for a folder that cannot be used."""
        from transformers import BertTokenizer, BlipForQuestionAnswering, BlipImageProcessor

        self.device = device
        try:
            self.processor: Any = BlipImageProcessor.from_pretrained(folder)
            self.tokenizer: Any = BertTokenizer(vocab=str(folder / "vocab.txt"))
            model, found = BlipForQuestionAnswering.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            if found["missing_keys"]:  # of another BLIP; they would be random numbers
                raise EvaluationError(f"its weights have no {min(found['missing_keys'])}")
            self.model: Any = model.to(device).eval()
            self.answers(Image.new("RGB", (64, 64)), ["is it dark?"])  # do the parts fit?
        except Exception as error:
            message = one_line(error)[:300]
            raise EvaluationError(f"{folder}: no BLIP that answers questions ({message})") from None
        self.name = "blip-vqa"
        self.version = version(folder, MODEL_FILES)

    @torch.inference_mode()
    def answers(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """An answer to each question about an RGB picture, in a few words.

        Questions are cut to what the model reads. Those asked at once have equally many tokens:
        transformers' BLIP drops the mask of its cross-attention, so that padding would be read.
        """
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(questions), truncation=True, max_length=limit).input_ids
        by_length: dict[int, list[int]] = {}
        for i, one in enumerate(tokens):
            by_length.setdefault(len(one), []).append(i)
        pixels = self.processor(images=image, return_tensors="pt").pixel_values.to(self.device)
        seen_1PD = self.model.vision_model(pixel_values=pixels).last_hidden_state
        said = [""] * len(tokens)
        for alike in by_length.values():
            for start in range(0, len(alike), BATCH):
                batch = alike[start : start + BATCH]
                asked_BL = torch.tensor([tokens[i] for i in batch], device=self.device)
                for i, answer in zip(batch, self._said(seen_1PD, asked_BL), strict=True):
                    said[i] = answer
        return said

    def _said(self, seen_1PD: Tensor, asked_BL: Tensor) -> list[str]:
        """As transformers' `generate`, which sees the picture anew for every question."""
        size, model = len(asked_BL), self.model
        read_BLD = model.text_encoder(
            input_ids=asked_BL, encoder_hidden_states=seen_1PD.expand(size, -1, -1)
        ).last_hidden_state
        begin_B1 = torch.full((size, 1), model.decoder_start_token_id, device=self.device)
        tokens = model.text_decoder.generate(
            input_ids=begin_B1,
            encoder_hidden_states=read_BLD,
            eos_token_id=model.config.text_config.sep_token_id,
            pad_token_id=model.config.text_config.pad_token_id,
            do_sample=False,
            num_beams=1,
            max_new_tokens=ANSWER_TOKENS,
        )
        said: list[str] = self.tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)
        return said


def load_vqa(name: str, device: str) -> Blip:
    """From a folder or a Hub id that was fetched before. Raises `EvaluationError`."""
    return Blip(find(name, MODEL_FILES), device)
