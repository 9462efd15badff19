"""The text encoder: prompts in, CLIP text states and pooled states out, for the transformer.

A transformers CLIPTokenizer and CLIPTextModelWithProjection, read from and written to the folders
`tokenizer/` and `text_encoder/` of a checkpoint through weights.py.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PretrainedConfig,
)

from cogrpo_core.models.config import FolderConfig, Size
from cogrpo_core.models.weights import (
    CheckpointError,
    check_config,
    load_module,
    one_line,
    read_json,
    save_module,
)

WEIGHTS_FILE = "model.safetensors"
# Checkpoints of transformers before 4.31 store this constant table; nothing reads it.
OLD_KEYS = frozenset({"text_model.embeddings.position_ids"})
# Fields of other versions that say nothing about the computation.
OLD_FIELDS = frozenset({"torch_dtype", "dropout"})
# A call sets padding and truncation on the tokenizer itself: two at once get each other's lengths.
_TOKENIZING = threading.Lock()


@dataclass(frozen=True)
class TextStates:
    """A batch of encoded prompts."""

    encoder_hidden_states: Tensor
    """[B, L, J]: the last layer but one's output, without a final norm."""
    pooled_projections: Tensor
    """[B, P]: the last layer's state at the end token, after final norm and projection."""


class TextEncoderConfig(FolderConfig):
    """The fields of `text_encoder/config.json` that shape a CLIP text model."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    projection_dim: Size
    num_hidden_layers: Annotated[int, Field(gt=0, le=1024, strict=True)]
    num_attention_heads: Annotated[int, Field(gt=0, le=1024, strict=True)]
    max_position_embeddings: Size
    hidden_act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    initializer_factor: Annotated[float, Field(gt=0)] = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    model_type: Literal["clip_text_model"] = "clip_text_model"


class TextEncoder(nn.Module):
    """A CLIP text tower and its tokenizer; any thread may use it."""

    def __init__(self, model: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def fresh(cls, config: CLIPTextConfig, tokenizer: CLIPTokenizer) -> Self:
        """An untrained encoder, in training mode."""
        return cls(CLIPTextModelWithProjection(config), tokenizer).train()

    @property
    def max_length(self) -> int:
        """L, the number of text positions; begin and end token included."""
        return int(self.tokenizer.model_max_length)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.model.text_projection.weight.device
        return device

    def token_count(self, prompt: str) -> int:
        """The prompt's tokens with begin and end; more than `max_length` will be cut off."""
        with _TOKENIZING:
            return len(self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"])

    def shortened(self, prompt: str) -> str:
        """The prompt, or as many of its first words as are read whole; it is never empty."""
        if self.token_count(prompt) <= self.max_length:
            return prompt
        fits, longest = 1, len(prompt)
        while fits < longest:
            middle = (fits + longest + 1) // 2
            if self.token_count(prompt[:middle]) <= self.max_length:
                fits = middle
            else:
                longest = middle - 1
        words, _, _ = prompt[:fits].rpartition(" ")
        return words if words.strip() else prompt[:fits]

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Ids [B, L] (int64, CPU), padded and cut to `max_length`."""
        with _TOKENIZING:
            encoded = self.tokenizer(
                prompts,
                padding="max_length",
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
        ids: Tensor = encoded["input_ids"]
        return ids

    def encode_ids(self, ids: Tensor) -> TextStates:
        """The states of ids [B, L]; keeps the gradient. Padding is attended to, as in training."""
        output = self.model(input_ids=ids.to(self.device), output_hidden_states=True)
        return TextStates(
            encoder_hidden_states=output.hidden_states[-2], pooled_projections=output.text_embeds
        )

    def encode(self, prompts: list[str]) -> TextStates:
        """The states of prompts; keeps the gradient."""
        return self.encode_ids(self.tokenize(prompts))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The encoder of the checkpoint `folder`. Raises CheckpointError."""
        path = Path(folder) / "text_encoder"
        values = read_json(path / "config.json")
        generic = set(PretrainedConfig().to_dict()) | OLD_FIELDS
        known = {
            name: value
            for name, value in values.items()
            if name in TextEncoderConfig.model_fields or name not in generic
        }
        config = check_config(path / "config.json", known, TextEncoderConfig)
        try:
            with torch.device("meta"):
                model = CLIPTextModelWithProjection(CLIPTextConfig(**config.model_dump()))
        except Exception as error:
            raise CheckpointError(
                f"{path / 'config.json'}: no CLIP text model can be made ({one_line(error)})"
            ) from None
        # The one buffer that no checkpoint stores.
        positions = torch.arange(config.max_position_embeddings).unsqueeze(0)
        embeddings = model.text_model.embeddings
        embeddings.register_buffer("position_ids", positions, persistent=False)
        load_module(model, path / WEIGHTS_FILE, dtype=dtype, device=device, ignored=OLD_KEYS)
        tokenizer = _read_tokenizer(Path(folder) / "tokenizer", config)
        return cls(model, tokenizer).eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes `text_encoder/` and `tokenizer/` into the checkpoint `folder`."""
        config: Any = self.model.config
        names = TextEncoderConfig.model_fields
        values = {name: getattr(config, name) for name in names}
        values |= {"architectures": ["CLIPTextModelWithProjection"]}
        path = Path(folder) / "text_encoder" / WEIGHTS_FILE
        save_module(self.model, path, config=values, dtype=dtype)
        # The tokenizer remembers how it was called last; that is no part of it.
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")


def _read_tokenizer(folder: Path, config: TextEncoderConfig) -> CLIPTokenizer:
    has_vocabulary = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not (has_vocabulary or (folder / "tokenizer.json").is_file()):
        raise CheckpointError(
            f"{folder}: neither tokenizer.json nor vocab.json and merges.txt are there; "
            f"is this a whole checkpoint folder?"
        )
    read_json(folder / "tokenizer_config.json")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{folder}: no CLIP tokenizer ({one_line(error)})") from None
    if tokenizer.model_max_length > config.max_position_embeddings:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: model_max_length {tokenizer.model_max_length} "
            f"exceeds the text encoder's max_position_embeddings {config.max_position_embeddings}"
        )
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"{folder}: {len(tokenizer)} tokens, but the text encoder's vocab_size is "
            f"{config.vocab_size}; tokenizer and text encoder belong to different models"
        )
    return tokenizer
