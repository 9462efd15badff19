"""The Meissonic transformer: masked image tokens and text in, logits over the codes out.

Its layers are in layers.py, its folder layout in weights.py; denoise.py and the engine call
`condition` once a request, `states` once a step and `head` on the masked positions.

Shape letters: B batch, H W token grid, h w inner grid, N = H*W, L text positions, D width, V codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cogrpo_core.kernels.ops import linear_token_logprob
from cogrpo_core.models.config import TransformerConfig
from cogrpo_core.models.layers import (
    AdaNorm,
    Conv2x2,
    Downsample,
    Head,
    PointwiseConv,
    RMSNorm,
    SingleStreamBlock,
    Sinusoids,
    TokenEmbedding,
    TwoLayer,
    TwoStreamBlock,
    Upsample,
)
from cogrpo_core.models.rope import cached_rope_table, rope_table
from cogrpo_core.models.weights import load_module, read_config, save_module

SINUSOID_DIM = 256
MICRO_CONDITIONS = 5
TIME_SCALE = 1000.0
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Conditioning:
    """What a request's text and micro-conditions come to, the same at every step."""

    text: Tensor
    """[B, L, D]: the text states, projected and normed."""
    pooled: Tensor
    """[B, D]: the embedding of pooled text and micro-conditions, added to the time's."""

    @classmethod
    def cat(cls, parts: Sequence["Conditioning"]) -> "Conditioning":
        """One batch of several; all need the same number of text positions."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def select(self, index: Tensor | slice | Sequence[int]) -> "Conditioning":
        """The rows `index` of the batch."""
        if not isinstance(index, (Tensor, slice)):
            index = torch.as_tensor(index, dtype=torch.long, device=self.text.device)
        return Conditioning(text=self.text[index], pooled=self.pooled[index])

    def __len__(self) -> int:
        return self.text.shape[0]


@dataclass(frozen=True)
class States:
    """What one step computes before the head's last, linear layer."""

    hidden: Tensor
    """[B, N, D]: normed states, row by row; `head` turns any of them into logits."""
    features: Tensor
    """[B, D, h, w]: the inner grid after the final RMSNorm, which the scheduling policy reads."""


@dataclass(frozen=True)
class TransformerOutput:
    """The result of a whole forward pass."""

    logits: Tensor
    """[B, V, H, W]."""
    features: Tensor
    """[B, D, h, w], as in `States`."""


class MeissonicTransformer(nn.Module):
    """The transformer of Meissonic (the paper's pi_model), with the public checkpoints' keys.

    A fresh one is ready to train: weights have variance 1 / fan-in, and every block starts as the
    identity because its modulation starts at zero.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.fixed_shapes = False
        """Whether `states` runs as graphs of one shape each, as compiled.py makes them."""
        self.sharded = False
        """Whether each process holds a part of the weights, which are gathered when needed."""
        dim, head_dim = config.dim, config.attention_head_dim
        self.sinusoids = Sinusoids(SINUSOID_DIM)
        self.time_text_embed = nn.ModuleDict(
            {"timestep_embedder": TwoLayer(SINUSOID_DIM, dim), "text_embedder": TwoLayer(dim, dim)}
        )
        self.context_embedder = nn.Linear(config.joint_attention_dim, dim)
        self.encoder_proj_layer_norm = RMSNorm(dim)
        condition_dim = MICRO_CONDITIONS * SINUSOID_DIM + config.pooled_projection_dim
        self.cond_embed = TwoLayer(condition_dim, dim, bias=False)
        self.embed = TokenEmbedding(config.vocab_size, dim)
        if config.downsample:
            self.down_block = nn.ModuleDict({"downsample": Downsample(dim)})
            self.up_block = nn.ModuleDict({"upsample": Upsample(dim)})
        self.project_to_hidden_norm = RMSNorm(dim)
        self.project_to_hidden = nn.Linear(dim, dim, bias=False)
        self.transformer_blocks = nn.ModuleList(
            TwoStreamBlock(dim, head_dim) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleStreamBlock(dim, head_dim) for _ in range(config.num_single_layers)
        )
        self.project_from_hidden_norm = RMSNorm(dim)
        self.project_from_hidden = nn.Linear(dim, dim, bias=False)
        self.mlm_layer = Head(dim, config.codebook_size)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, PointwiseConv, Conv2x2)):
                # Of a transposed 2x2 convolution, each output sees the first axis of the weight.
                transposed = isinstance(module, Conv2x2) and module.transposed
                fan_in = module.weight.shape[0] if transposed else module.weight[0].numel()
                nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, AdaNorm):
                nn.init.zeros_(module.linear.weight)
        # States of unit size meet the last layer: small weights make the first guess near uniform.
        nn.init.trunc_normal_(self.mlm_layer.conv2.weight, std=0.02)

    def condition(
        self, encoder_hidden_states: Tensor, pooled_projections: Tensor, micro_conds: Tensor
    ) -> Conditioning:
        """The work that does not depend on the step: done once a request.

        Takes [B, L, J], [B, P] and [B, 5] (width, height, crop top, crop left, aesthetic score).
        Keeps the gradient. Raises ValueError on another shape.
        """
        self._check_conditions(encoder_hidden_states, pooled_projections, micro_conds)
        weight = self.context_embedder.weight
        text = self.encoder_proj_layer_norm(
            self.context_embedder(encoder_hidden_states.to(weight.dtype))
        )
        micro = self.sinusoids(micro_conds).flatten(1)
        both = torch.cat([pooled_projections.to(weight.dtype), micro.to(weight.dtype)], dim=-1)
        pooled = self.time_text_embed["text_embedder"](self.cond_embed(both))
        return Conditioning(text=text, pooled=pooled)

    def rope(self, text_length: int, height: int, width: int) -> Tensor:
        """The rotation table for L text positions and the token grid H x W, made once a shape."""
        grid = self._inner(height, width)
        return self._rope(text_length, *grid, self.project_to_hidden.weight.device)

    def states(
        self,
        token_ids: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        rope: Tensor | None = None,
    ) -> States:
        """One step's states for token_ids [B, H, W] and timestep [B] (steps remaining, T-1 ... 0).

        `rope` is `self.rope(...)` of the shape: giving it keeps its computation out of a compiled
        graph; eager mode remembers it anyway. Raises ValueError when grid or batch do not fit.
        """
        both, emb, rope, length = self._trunk(token_ids, timestep, conditioning, rope)
        grid = self._inner(*token_ids.shape[1:])
        features = self.project_from_hidden_norm(self._last_block(both, emb, rope, length))
        x = self.project_from_hidden(features).unflatten(1, grid)
        if self.config.upsample:
            x = self.up_block["upsample"](x)
        return States(
            hidden=self.mlm_layer(x).flatten(1, 2),
            features=features.transpose(1, 2).unflatten(2, grid),
        )

    def hidden_at(
        self,
        token_ids: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        positions: Tensor,
        rope: Tensor | None = None,
        *,
        featured: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """The `hidden` of `states` at `positions` [K], indices into the B*N tokens: [K, D].

        And the `features` of the first `featured` rows. On a CPU the last layers compute nothing
        else. Elsewhere the host would have to wait for the number of cells that they need.
        """
        if self.fixed_shapes or not _sizes_are_known(token_ids):
            states = self.states(token_ids, timestep, conditioning, rope)
            hidden = states.hidden.flatten(0, 1).index_select(0, positions)
            return hidden, states.features[:featured]
        both, emb, rope, length = self._trunk(token_ids, timestep, conditioning, rope)
        cell, corner, grid = positions, None, self._inner(*token_ids.shape[1:])
        if self.config.upsample:
            cell, corner = _cell_of(positions, *token_ids.shape[1:])
        # First all cells of the featured rows, then those of the others that hold a position.
        whole = featured * grid[0] * grid[1]
        needed, place = cell.unique(return_inverse=True)
        inside, others = needed[needed < whole], needed[needed >= whole]
        wanted = torch.cat([torch.arange(whole, device=cell.device), others])
        normed = self.project_from_hidden_norm(self._last_block(both, emb, rope, length, wanted))
        features = normed[:whole].unflatten(0, (featured, *grid)).movedim(-1, 1)
        if whole:
            normed = torch.cat([normed.index_select(0, inside), normed[whole:]])
        x = self.project_from_hidden(normed)
        if corner is None:
            x = x.index_select(0, place)
        else:
            upsample = self.up_block["upsample"]
            assert isinstance(upsample, Upsample)
            x = upsample.tokens(x, place, corner)
        hidden = self.mlm_layer(x)
        return hidden, features

    def _trunk(
        self,
        token_ids: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        rope: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """All but the last block: [B, L + N/4, D], its modulation, rotation table and L."""
        self._check_step(token_ids, timestep, conditioning)
        # Under autocast the residual stream stays in the parameters' type, float32.
        dtype = self.project_to_hidden.weight.dtype
        cells = self._cells(token_ids)
        image = self.project_to_hidden(self.project_to_hidden_norm(cells)).to(dtype)
        text = conditioning.text.to(dtype)
        time = self.sinusoids(timestep.float() * TIME_SCALE).to(dtype)
        emb = F.silu(self.time_text_embed["timestep_embedder"](time) + conditioning.pooled)
        if rope is None:
            rope = self._rope(text.shape[1], *self._inner(*token_ids.shape[1:]), token_ids.device)
        for block in self.transformer_blocks:
            image, text = block(image, text, emb, rope)
        both = torch.cat([text, image], dim=1)
        for block in self.single_transformer_blocks[:-1]:
            both = block(both, emb, rope)
        return both, emb, rope, text.shape[1]

    def _last_block(
        self,
        both: Tensor,
        emb: Tensor,
        rope: Tensor,
        length: int,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """The last block, for the image or its cells `wanted`: nothing reads the text any more."""
        for block in self.single_transformer_blocks[-1:]:
            last: Tensor = block(both, emb, rope, length, wanted)
            return last
        image = both[:, length:]
        return image if wanted is None else image.flatten(0, 1).index_select(0, wanted)

    def _cells(self, token_ids: Tensor) -> Tensor:
        """The embedded inner grid [B, h*w, D] of token_ids [B, H, W]."""
        downsample = self.down_block["downsample"] if self.config.downsample else None
        if not _sizes_are_known(token_ids):
            x = self.embed(token_ids)
            grid: Tensor = x if downsample is None else downsample(x)
            return grid.flatten(1, 2)
        # Up to a cell's sum, all is a function of one token, and few different ones occur.
        distinct, place_BHW = token_ids.unique(return_inverse=True)
        x = self.embed(distinct)
        if downsample is None:
            embedded: Tensor = F.embedding(place_BHW.flatten(1), x)
            return embedded
        corner = torch.arange(4, device=token_ids.device).view(2, 2)
        index = 4 * place_BHW.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)) + corner[:, None]
        assert isinstance(downsample, Downsample)
        corners = index.transpose(2, 3).flatten(3).flatten(0, 2)
        cells: Tensor = F.embedding_bag(corners, downsample.parts(x), mode="sum")
        by_row: Tensor = cells.unflatten(0, (len(token_ids), -1))
        return by_row

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        return (height // 2, width // 2) if self.config.downsample else (height, width)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of states [..., D]; linear, so guidance may come before or after it."""
        logits: Tensor = self.mlm_layer.conv2(hidden)
        return logits

    def token_logprob(self, hidden: Tensor, temperature: Tensor, token: Tensor) -> Tensor:
        """log softmax(head(hidden) / temperature) of a token [M], float32, for states [M, D].

        The logits are made chunk by chunk, in the backward pass again, and never exist as a whole.
        """
        weight = self.mlm_layer.conv2.weight.flatten(1)
        return linear_token_logprob(hidden, weight, temperature, token)

    def forward(
        self,
        *,
        token_ids: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conds: Tensor,
        timestep: Tensor,
    ) -> TransformerOutput:
        """Logits [B, V, H, W] for token_ids [B, H, W]; the rest as in `condition` and `states`."""
        conditioning = self.condition(encoder_hidden_states, pooled_projections, micro_conds)
        states = self.states(token_ids, timestep, conditioning)
        logits = self.head(states.hidden).transpose(1, 2).unflatten(2, token_ids.shape[1:])
        return TransformerOutput(logits=logits, features=states.features)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The model in `folder` (config.json and safetensors). Raises CheckpointError."""
        config = read_config(Path(folder) / "config.json", TransformerConfig)
        with torch.device("meta"):
            model = cls(config)
        load_module(model, Path(folder) / WEIGHTS_FILE, dtype=dtype, device=device)
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the folder; `dtype` is the type to store, the model's own without it."""
        values = self.config.model_dump(mode="json") | {"_class_name": "Transformer2DModel"}
        save_module(self, Path(folder) / WEIGHTS_FILE, config=values, dtype=dtype)

    def _rope(self, text_length: int, height: int, width: int, device: torch.device) -> Tensor:
        make = rope_table if torch.compiler.is_compiling() else cached_rope_table
        return make(self.config.axes_dims_rope, text_length, height, width, device)

    def _check_conditions(self, text: Tensor, pooled: Tensor, micro: Tensor) -> None:
        config = self.config
        if text.ndim != 3 or text.shape[2] != config.joint_attention_dim:
            raise ValueError(
                f"encoder_hidden_states is {tuple(text.shape)}, "
                f"not [batch, text positions, {config.joint_attention_dim}]"
            )
        batch = text.shape[0]
        for name, value, width in (
            ("pooled_projections", pooled, config.pooled_projection_dim),
            ("micro_conds", micro, MICRO_CONDITIONS),
        ):
            if value.shape != (batch, width):
                raise ValueError(f"{name} is {tuple(value.shape)}, not {(batch, width)}")

    def _check_step(self, token_ids: Tensor, timestep: Tensor, conditioning: Conditioning) -> None:
        if token_ids.ndim != 3:
            raise ValueError(f"token_ids is {tuple(token_ids.shape)}, not [batch, height, width]")
        batch, height, width = token_ids.shape
        if self.config.downsample and (height % 2 or width % 2):
            raise ValueError(f"the token grid {height}x{width} must be even: the model halves it")
        if timestep.shape not in ((batch,), (1,)):
            raise ValueError(f"timestep is {tuple(timestep.shape)}, not ({batch},)")
        if len(conditioning) != batch:
            raise ValueError(
                f"the conditioning has {len(conditioning)} rows for {batch} token grids"
            )


def _sizes_are_known(tensor: Tensor) -> bool:
    """Whether the size of a result costs no waiting: on a CPU, outside of a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _cell_of(position: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The 2x2 cell of each token, an index into all rows' inner grids, and its corner 0 ... 3."""
    row, column = position // width, position % width  # H is even: rows of grids do not mix
    return row // 2 * (width // 2) + column // 2, row % 2 * 2 + column % 2
