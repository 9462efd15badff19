"""The embedded model's tokenizer: CLIP's byte-pair encoding with the words of the world.

Words of the world are one token each; any other text falls back to pieces and bytes.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from cogrpo_core.shapes.captions import caption
from cogrpo_core.shapes.scenes import sample_spec

MAX_LENGTH = 48  # text positions, the two marks included
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(*, captions: int = 20_000, seed: int = 0) -> CLIPTokenizer:
    """A CLIPTokenizer whose vocabulary holds all bytes and all words of the world's captions."""
    rng = np.random.default_rng(seed)
    texts = [caption(sample_spec(rng), rng) for _ in range(captions)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.WhitespaceSplit()]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    with tempfile.TemporaryDirectory() as folder:
        _, merges_file = tokenizer.model.save(folder)
        merges = [
            line
            for line in Path(merges_file).read_text().splitlines()
            if line and not line.startswith("#version")
        ]
    return build_tokenizer(alphabet, merges)


def build_tokenizer(alphabet: list[str], merges: list[str]) -> CLIPTokenizer:
    """CLIP's order of ids: bytes, bytes that end a word, merges, the two marks."""
    words = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    words += ["".join(pair.split()) for pair in merges]
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*words, *SPECIAL]))}
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps(vocab, ensure_ascii=False))
        merges_file.write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)
