"""The suites' models at a size for tests, with random weights, in the published folders' form."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from cogrpo_trainer.suites.detector import CLASSES

CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "image_size": 32, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}


def write_detector(folder: Path, labels: tuple[str, ...] = CLASSES) -> Path:
    """A Mask2Former over 64-pixel pictures."""
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(40)  # sure enough of something to find it
    model.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 64}
    Mask2FormerImageProcessor(size=size).save_pretrained(folder)
    return folder


def write_color_model(folder: Path) -> Path:
    """An open_clip CLIP."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP)
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"model_cfg": CLIP, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "is", "are", "the", "there", "a",
    "and", "of", "left", "red", "blue", "green", "white", "plain", "large", "two", "circle",
    "square", "star", "heart", "ring", "background", "?", "##s",
)  # fmt: skip


def write_vqa(folder: Path) -> Path:
    """A BLIP over 32-pixel pictures that begins every answer with yes or no."""
    begin = len(WORDS)  # as in the published one, beyond the vocabulary
    special = {"bos_token_id": begin, "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.5,
    }
    config = BlipConfig(
        text_config={
            **sizes,
            **special,
            "vocab_size": begin + 2,
            "encoder_hidden_size": 16,
            "max_position_embeddings": 16,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(1)
    model = BlipForQuestionAnswering(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[[WORDS.index("yes"), WORDS.index("no")]] += 40
        # So that answers depend on the question most, on the picture, and least on what was said.
        for layer in model.text_encoder.encoder.layer:
            layer.crossattention.output.dense.weight *= 0.1
        for layer in model.text_decoder.bert.encoder.layer:
            layer.crossattention.output.dense.weight *= 10
    model.save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder
