"""Who sees for GenEval: transformers' Mask2Former finds objects, open_clip's CLIP their colors.

The benchmark's own toolchain (mmdet 2) has the same model of the same training; masks come from
transformers here. Nothing is downloaded: both lie in a folder or in the Hub's cache.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cogrpo_core.models.weights import one_line
from cogrpo_trainer.evaluate import EvaluationError
from cogrpo_trainer.suites.folders import find, version
from cogrpo_trainer.suites.geneval_rules import COLORS, Detection

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
COLOR_MODEL = "timm/vit_large_patch14_clip_224.openai"
DETECTOR_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
COLOR_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
CONFIDENCE = 0.3  # the lowest of GenEval's thresholds
GREY = "#999"
TEMPLATES = (
    "a photo of a {c} {name}",
    "a photo of a {c}-colored {name}",
    "a photo of a {c} object",
)
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's classes in the detector's order, by the names that GenEval's prompts use."""


class Detector:
    """Finds objects and names their colors; `version` changes with the weights of either model."""

    def __init__(self, objects: Path, colors: Path, device: str) -> None:
        """Raises `EvaluationError` for a folder that cannot be used."""
        import open_clip
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

        self.device = device
        try:
            self.processor: Any = Mask2FormerImageProcessor.from_pretrained(objects)
            model: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
                objects, use_safetensors=True, local_files_only=True
            )
        except Exception as error:
            raise EvaluationError(f"{objects}: no Mask2Former ({one_line(error)[:300]})") from None
        labels = [model.config.id2label[i] for i in sorted(model.config.id2label)]
        if len(labels) != len(CLASSES) or (labels[0], labels[-1]) != (CLASSES[0], CLASSES[-1]):
            raise EvaluationError(f"{objects}: its {len(labels)} classes are not COCO's, in order")
        self.model = model.to(device).eval()
        try:
            self.clip, self.transform = open_clip.create_model_from_pretrained(
                f"local-dir:{colors}", device=device
            )
            self.tokenizer = open_clip.get_tokenizer(f"local-dir:{colors}")
        except Exception as error:
            message = one_line(error)[:300]
            raise EvaluationError(f"{colors}: no open_clip model ({message})") from None
        self.clip.eval()
        self.name = "mask2former"
        self.version = f"{version(objects, DETECTOR_FILES)} {version(colors, COLOR_FILES)}"
        self._colors: dict[str, Tensor] = {}

    @torch.inference_mode()
    def objects(self, image: Image.Image) -> list[Detection]:
        """What is in an RGB picture, above the lowest confidence that GenEval counts."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        (found,) = self.processor.post_process_instance_segmentation(
            self.model(**inputs),
            threshold=CONFIDENCE,
            target_sizes=[(image.height, image.width)],
            return_binary_maps=True,
        )
        detections = []
        for i, one in enumerate(found["segments_info"]):
            mask = found["segmentation"][i].cpu().numpy() > 0
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            left, top, right, bottom = (float(side) for side in box)
            detections.append(
                Detection(CLASSES[one["label_id"]], one["score"], (left, top, right, bottom), mask)
            )
        return detections

    @torch.inference_mode()
    def colors(self, image: Image.Image, name: str, found: Sequence[Detection]) -> list[str]:
        """The color of each detection of a class: the object on grey, cut out, read by CLIP."""
        grey = Image.new("RGB", image.size, GREY)
        crops = []
        for one in found:
            shown = image
            if one.mask is not None:
                shown = Image.composite(image, grey, Image.fromarray(one.mask))
            crops.append(self.transform(shown.crop(one.box)))
        seen = self.clip.encode_image(torch.stack(crops).to(self.device), normalize=True)
        best = (seen @ self._classifier(name).T).argmax(dim=1)
        return [COLORS[index] for index in best.tolist()]

    def _classifier(self, name: str) -> Tensor:
        """A unit vector for each color of this class, [C, E]: the mean over the templates."""
        if name not in self._colors:
            texts = [one.format(c=color, name=name) for color in COLORS for one in TEMPLATES]
            said = self.clip.encode_text(self.tokenizer(texts).to(self.device), normalize=True)
            mean = said.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(dim=1)
            self._colors[name] = F.normalize(mean, dim=-1)
        return self._colors[name]


def load_detector(objects: str, colors: str, device: str) -> Detector:
    """From folders or Hub ids that were fetched before. Raises `EvaluationError`."""
    return Detector(find(objects, DETECTOR_FILES), find(colors, COLOR_FILES), device)
