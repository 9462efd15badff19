"""The layers of the Meissonic transformer, named so that the public checkpoints' keys fit.

Sequences are [B, S, D] and grids [B, H, W, D]: channels last throughout.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cogrpo_core.kernels.ops import gelu, modulate, rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32, given in x's type."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """x [..., dim]; with a rotation [S, dim/2, 2], x is [..., S, heads, dim], turned after."""
        return rms_norm(x, self.weight, rotation)


class PointwiseConv(nn.Module):
    """A 1x1 convolution without bias over the last axis; its weight is [out, in, 1, 1]."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim_out, dim_in, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1))


class Conv2x2(nn.Module):
    """The weight of a 2x2 convolution of stride 2: [out, in, 2, 2], transposed [in, out, 2, 2]."""

    def __init__(self, dim: int, *, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(torch.empty(dim, dim, 2, 2))


class Downsample(nn.Module):
    """RMSNorm and a 2x2 convolution of stride 2: [B, 2h, 2w, D] -> [B, h, w, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.conv = Conv2x2(dim)

    def forward(self, x: Tensor) -> Tensor:
        # Patches do not overlap, so the convolution is one matrix product a patch.
        patches = self.norm(x).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 5, 2, 4)
        out: Tensor = F.linear(patches.flatten(3), self.conv.weight.flatten(1))
        return out

    def parts(self, x: Tensor) -> Tensor:
        """What each x [U, D] adds to a cell from each of its four places, row by row: [4U, D]."""
        weight = self.conv.weight.permute(2, 3, 0, 1).flatten(0, 2)
        out: Tensor = F.linear(self.norm(x), weight).unflatten(-1, (4, -1)).flatten(0, 1)
        return out


class Upsample(nn.Module):
    """RMSNorm and a transposed 2x2 convolution of stride 2: [B, h, w, D] -> [B, 2h, 2w, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.conv = Conv2x2(dim, transposed=True)

    def forward(self, x: Tensor) -> Tensor:
        flat = F.linear(self.norm(x), self.conv.weight.flatten(1).t())
        patches: Tensor = flat.unflatten(-1, (-1, 2, 2))
        return patches.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)

    def tokens(self, x: Tensor, cell: Tensor, corner: Tensor) -> Tensor:
        """Some tokens of the cells x [P, D], each by its cell and its corner 0 ... 3: [K, D]."""
        flat = F.linear(self.norm(x), self.conv.weight.flatten(1).t())
        out: Tensor = flat.unflatten(-1, (-1, 4))[cell, :, corner]
        return out


class TokenEmbedding(nn.Module):
    """Token ids [B, H, W] -> [B, H, W, D]."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, dim)
        self.layer_norm = RMSNorm(dim)
        self.conv = PointwiseConv(dim, dim)

    def forward(self, token_ids_BHW: Tensor) -> Tensor:
        x: Tensor = self.conv(self.layer_norm(self.embeddings(token_ids_BHW)))
        return x


class Head(nn.Module):
    """States -> logits; `conv2`, the last layer, is linear and is applied apart from the rest."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.conv1 = PointwiseConv(dim, dim)
        self.layer_norm = RMSNorm(dim)
        self.conv2 = PointwiseConv(dim, codebook_size)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.layer_norm(self.conv1(x))
        return normed


class TwoLayer(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, dim_in: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim, bias=bias)
        self.linear_2 = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class FeedForward(nn.Module):
    """Linear to four times the width, GELU (tanh), Linear back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        first = nn.ModuleDict({"proj": nn.Linear(dim, 4 * dim)})
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        first, _, last = self.net
        out: Tensor = last(gelu(first.get_submodule("proj")(x)))
        return out


class AdaNorm(nn.Module):
    """The modulation of a block: `chunks` vectors of width D from SiLU(time and condition)."""

    def __init__(self, dim: int, chunks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, chunks * dim)
        self.chunks = chunks

    def forward(self, emb: Tensor) -> tuple[Tensor, ...]:
        """Gives `chunks` tensors [B, 1, D] for emb [B, D]."""
        modulation: Tensor = self.linear(emb)
        return modulation.unsqueeze(1).chunk(self.chunks, dim=-1)


class Sinusoids(nn.Module):
    """[cos, sin] of a number at dim/2 frequencies from 1 down to 1e-4, in float32."""

    bits: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Times reach 63000 and more, so one rounding of a frequency moves an angle by 0.003 and
        # the logits by 0.0002. Hence made on the CPU for every device and compiler, and held as
        # integers, which a change of the model's type leaves alone.
        exponents = torch.arange(dim // 2, dtype=torch.float32, device="cpu") / (dim // 2)
        frequencies = torch.exp(-math.log(1e4) * exponents)
        self.register_buffer("bits", frequencies.view(torch.int32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[...] of any type -> [..., dim]."""
        angles = x.float().unsqueeze(-1) * self.bits.view(torch.float32)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, S, D] -> [B, S, heads, head_dim]."""
    heads: Tensor = x.unflatten(-1, (-1, head_dim))
    return heads


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of [B, S, heads, head_dim]; gives [B, S, D] for the positions of q."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


class JointAttention(nn.Module):
    """Attention over [text, image], each stream with projections of its own."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(head_dim), RMSNorm(head_dim)
        self.norm_added_q, self.norm_added_k = RMSNorm(head_dim), RMSNorm(head_dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.to_add_out = nn.Linear(dim, dim)

    def forward(self, image: Tensor, text: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """image [B, N, D] and text [B, L, D] in, the same two out."""
        dim, length = self.head_dim, text.shape[1]
        turn = rope[length:]  # the text's rotation is the identity
        q = torch.cat(
            [
                self.norm_added_q(heads(self.add_q_proj(text), dim)),
                self.norm_q(heads(self.to_q(image), dim), turn),
            ],
            dim=1,
        )
        k = torch.cat(
            [
                self.norm_added_k(heads(self.add_k_proj(text), dim)),
                self.norm_k(heads(self.to_k(image), dim), turn),
            ],
            dim=1,
        )
        v = heads(torch.cat([self.add_v_proj(text), self.to_v(image)], dim=1), dim)
        text_out, image_out = attend(q, k, v).split([length, image.shape[1]], dim=1)
        return self.to_out[0](image_out), self.to_add_out(text_out)


class Attention(nn.Module):
    """Self-attention over one sequence, without an output projection."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(head_dim), RMSNorm(head_dim)

    def forward(self, x: Tensor, rope: Tensor, first: int = 0) -> Tensor:
        """What the positions from `first` on read of all positions of x [B, S, D]."""
        dim = self.head_dim
        q = self.norm_q(heads(self.to_q(x[:, first:]), dim), rope[first:])
        k = self.norm_k(heads(self.to_k(x), dim), rope)
        return attend(q, k, heads(self.to_v(x), dim))


class TwoStreamBlock(nn.Module):
    """Text and image in streams of their own, which meet in the attention."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm1_context = AdaNorm(dim, 6), AdaNorm(dim, 6)
        self.attn = JointAttention(dim, head_dim)
        self.ff, self.ff_context = FeedForward(dim), FeedForward(dim)

    def forward(
        self, image: Tensor, text: Tensor, emb: Tensor, rope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """image [B, N, D], text [B, L, D], emb [B, D] = SiLU(time and condition)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.norm1(emb)
        t_shift, t_scale, t_gate, t_mlp_shift, t_mlp_scale, t_mlp_gate = self.norm1_context(emb)
        image_out, text_out = self.attn(
            modulate(image, shift, scale), modulate(text, t_shift, t_scale), rope
        )
        image = torch.addcmul(image, gate, image_out)
        text = torch.addcmul(text, t_gate, text_out)
        image = torch.addcmul(image, mlp_gate, self.ff(modulate(image, mlp_shift, mlp_scale)))
        text = torch.addcmul(
            text, t_mlp_gate, self.ff_context(modulate(text, t_mlp_shift, t_mlp_scale))
        )
        return image, text


class SingleStreamBlock(nn.Module):
    """Attention and MLP side by side over [text, image]."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm = AdaNorm(dim, 3)
        self.attn = Attention(dim, head_dim)
        self.proj_mlp = nn.Linear(dim, 4 * dim)
        self.proj_out = nn.Linear(5 * dim, dim)

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        rope: Tensor,
        first: int = 0,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """x [B, S, D], emb [B, D]; gives the positions from `first` on, [B, S - first, D].

        With `wanted` [P], indices into the B (S - first) of them, it gives [P, D], these alone.
        """
        shift, scale, gate = self.norm(emb)
        normed = modulate(x, shift, scale)
        attended = self.attn(normed, rope, first)
        x, normed = x[:, first:], normed[:, first:]
        if wanted is not None:
            gate = gate[:, 0].index_select(0, wanted // x.shape[1])
            x, normed, attended = (
                each.flatten(0, 1).index_select(0, wanted) for each in (x, normed, attended)
            )
        mlp = gelu(self.proj_mlp(normed))
        return torch.addcmul(x, gate, self.proj_out(torch.cat([attended, mlp], dim=-1)))
