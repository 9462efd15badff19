"""The transformer's step with joined weights: fewer, larger products, for inference at fixed sizes.

Layers that read the same rows become one: q, k, v and the MLP's first layer of a block, and the
modulations of all blocks. What is a function of one token up to the sum over a cell, the embedding
and the downsampling, becomes a table. The transformer's own weights become views of the joined
ones, so that none is held twice. compiled.py runs it.

Shape letters: R rows, H W token grid, h w inner grid, S positions (L of text, then h*w), D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cogrpo_core.kernels.ops import gelu, modulate
from cogrpo_core.models.layers import (
    Downsample,
    SingleStreamBlock,
    TwoStreamBlock,
    Upsample,
    attend,
    heads,
)
from cogrpo_core.models.transformer import TIME_SCALE, Conditioning, MeissonicTransformer, States

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


class Joined(nn.Module):
    """Linear layers of one input as one; their parameters become views of its own."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        self.weight = nn.Parameter(torch.cat([x.weight.detach() for x in layers]), False)
        self.bias = nn.Parameter(torch.cat([x.bias.detach() for x in layers]), False)
        for layer, weight, bias in zip(
            layers, self.weight.split(self.sizes), self.bias.split(self.sizes), strict=True
        ):
            layer.weight.data, layer.bias.data = weight, bias

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., in] -> [..., out] of each layer."""
        out: Tensor = F.linear(x, self.weight, self.bias)
        parts: tuple[Tensor, ...] = out.split(self.sizes, dim=-1)
        return parts


class JoinedTwoStream(nn.Module):
    """A `TwoStreamBlock` with joined projections, its modulation given."""

    def __init__(self, block: TwoStreamBlock) -> None:
        super().__init__()
        attn = block.attn
        self.image_in = Joined([attn.to_q, attn.to_k, attn.to_v])
        self.text_in = Joined([attn.add_q_proj, attn.add_k_proj, attn.add_v_proj])
        self.block = block

    def forward(
        self, image: Tensor, text: Tensor, modulation: Tensor, rope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """image [R, h*w, D], text [R, L, D], modulation [R, 1, 12 D]: the image's, the text's."""
        block, attn, length = self.block, self.block.attn, text.shape[1]
        of_image, of_text = (half.chunk(6, dim=-1) for half in modulation.chunk(2, dim=-1))
        image_in = self.image_in(modulate(image, *of_image[:2]))
        text_in = self.text_in(modulate(text, *of_text[:2]))
        q, k, v = (heads(x, attn.head_dim) for x in image_in)
        text_q, text_k, text_v = (heads(x, attn.head_dim) for x in text_in)
        turn = rope[length:]
        both = attend(
            torch.cat([attn.norm_added_q(text_q), attn.norm_q(q, turn)], dim=1),
            torch.cat([attn.norm_added_k(text_k), attn.norm_k(k, turn)], dim=1),
            torch.cat([text_v, v], dim=1),
        )
        image = torch.addcmul(image, of_image[2], attn.to_out[0](both[:, length:]))
        text = torch.addcmul(text, of_text[2], attn.to_add_out(both[:, :length]))
        image_mlp = block.ff(modulate(image, *of_image[3:5]))
        text_mlp = block.ff_context(modulate(text, *of_text[3:5]))
        image = torch.addcmul(image, of_image[5], image_mlp)
        return image, torch.addcmul(text, of_text[5], text_mlp)


class JoinedSingleStream(nn.Module):
    """A `SingleStreamBlock` with one projection in, its modulation given."""

    def __init__(self, block: SingleStreamBlock) -> None:
        super().__init__()
        attn = block.attn
        self.all_in = Joined([attn.to_q, attn.to_k, attn.to_v, block.proj_mlp])
        self.block = block

    def forward(self, x: Tensor, modulation: Tensor, rope: Tensor) -> Tensor:
        """x [R, S, D] and modulation [R, 1, 3 D]."""
        attn = self.block.attn
        shift, scale, gate = modulation.chunk(3, dim=-1)
        *qkv, mlp = self.all_in(modulate(x, shift, scale))
        q, k, v = (heads(each, attn.head_dim) for each in qkv)
        attended = attend(attn.norm_q(q, rope), attn.norm_k(k, rope), v)
        out = self.block.proj_out(torch.cat([attended, gelu(mlp)], dim=-1))
        return torch.addcmul(x, gate, out)


class JoinedSteps:
    """`states` of a transformer in pieces; `compile_piece` is given one function of each kind.

    A change of the transformer's weights is only seen by what is made of it after that.
    """

    def __init__(self, transformer: MeissonicTransformer, compile_piece: Compile) -> None:
        two, single, norms = [], [], []
        for block in transformer.transformer_blocks:
            assert isinstance(block, TwoStreamBlock)
            two.append(JoinedTwoStream(block))
            norms += [block.norm1.linear, block.norm1_context.linear]
        for block in transformer.single_transformer_blocks:
            assert isinstance(block, SingleStreamBlock)
            single.append(JoinedSingleStream(block))
            norms.append(block.norm.linear)
        self.transformer = transformer
        self.two, self.single = two, single
        self.modulation = Joined(norms) if norms else None
        with torch.no_grad():
            self.table = _cell_table(transformer)
            self.up_weight = _up_weight(transformer)
        pieces = (_begin, JoinedTwoStream.forward, JoinedSingleStream.forward, _end)
        self.pieces = tuple(compile_piece(piece) for piece in pieces)

    @torch.no_grad()
    def __call__(
        self, token_ids: Tensor, timestep: Tensor, conditioning: Conditioning, rope: Tensor
    ) -> States:
        """As `MeissonicTransformer.states`, equal to rounding."""
        begin, two_stream, single_stream, end = self.pieces
        model = self.transformer
        text = conditioning.text.to(self.table.dtype)
        image, emb = begin(model, self.table, *_any_rows(token_ids, timestep, conditioning.pooled))
        modulations = iter(self._modulations(emb))
        for two in self.two:
            image, text = two_stream(two, *_any_rows(image, text, next(modulations)), rope)
        both = torch.cat([text, image], dim=1)
        for single in self.single:
            both = single_stream(single, *_any_rows(both, next(modulations)), rope)
        down = 2 if model.config.downsample else 1
        grid = (token_ids.shape[1] // down, token_ids.shape[2] // down)
        hidden, features = end(model, self.up_weight, *_any_rows(both), text.shape[1], *grid)
        return States(hidden=hidden, features=features)

    def _modulations(self, emb: Tensor) -> Sequence[Tensor]:
        """[R, 1, 12 D] of each two-stream block, then [R, 1, 3 D] of each other."""
        if self.modulation is None:
            return ()
        joined = F.linear(emb, self.modulation.weight, self.modulation.bias).unsqueeze(1)
        width = 3 * self.transformer.config.dim
        sizes = [4 * width] * len(self.two) + [width] * len(self.single)
        parts: tuple[Tensor, ...] = joined.split(sizes, dim=-1)
        return parts


def _any_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tells the compiler that the first axis may have any length from 2 on."""
    for tensor in tensors:
        if tensor.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensors


def _cell_table(model: MeissonicTransformer) -> Tensor:
    """What each token id adds to its cell, [V, D], or from each of its four places, [4 V, D]."""
    weight = model.embed.embeddings.weight
    embedded: Tensor = model.embed(torch.arange(len(weight), device=weight.device))
    if not model.config.downsample:
        return embedded
    downsample = model.down_block["downsample"]
    assert isinstance(downsample, Downsample)
    return downsample.parts(embedded)


def _up_weight(model: MeissonicTransformer) -> Tensor | None:
    """The upsampling as one product: [4 D, D], the four tokens of a cell row by row."""
    if not model.config.upsample:
        return None
    upsample = model.up_block["upsample"]
    assert isinstance(upsample, Upsample)
    return upsample.conv.weight.permute(2, 3, 1, 0).flatten(0, 2)


def _begin(
    model: MeissonicTransformer, table: Tensor, token_ids: Tensor, timestep: Tensor, pooled: Tensor
) -> tuple[Tensor, Tensor]:
    """The image [R, h*w, D] before the first block, and SiLU(time and condition) [R, D]."""
    if model.config.downsample:
        corner = torch.arange(4, device=token_ids.device).view(2, 1, 2)
        index = 4 * token_ids.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)) + corner
        parts = F.embedding(index.transpose(2, 3).flatten(3), table)
        cells = parts.float().sum(dim=3).flatten(1, 2).to(table.dtype)
    else:
        cells = F.embedding(token_ids.flatten(1), table)
    image: Tensor = model.project_to_hidden(model.project_to_hidden_norm(cells))
    time = model.sinusoids(timestep.float() * TIME_SCALE).to(table.dtype)
    return image, F.silu(model.time_text_embed["timestep_embedder"](time) + pooled)


def _end(
    model: MeissonicTransformer,
    up_weight: Tensor | None,
    both: Tensor,
    length: int,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    """`hidden` and `features` of `States` from what the last block gives for text and image."""
    features: Tensor = model.project_from_hidden_norm(both[:, length:])
    x: Tensor = model.project_from_hidden(features)
    grid = (height, width)
    if up_weight is not None:
        upsample = model.up_block["upsample"]
        x = F.linear(upsample.get_submodule("norm")(x), up_weight).unflatten(-1, (4, -1))
    hidden: Tensor = model.mlm_layer(x)
    if up_weight is not None:  # from cell by cell to row by row
        cells = hidden.unflatten(1, grid).unflatten(3, (2, 2))
        hidden = cells.transpose(2, 3).flatten(1, 4)
    return hidden, features.transpose(1, 2).unflatten(2, grid)
