"""The scheduling policy (the paper's pi_schedule, Eq. 14): features and time in, actions out.

It reads `States.features` of the transformer's conditional pass; denoise.py applies its actions.
An action row is (re-mask ratio r, sampling temperature, re-mask temperature, guidance scale);
a *raw* action is a residual on a base schedule's row, in an unconstrained space, and Gaussian.
"""

import math
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cogrpo_core.models.config import Flag, FolderConfig, Size
from cogrpo_core.models.layers import Sinusoids, TwoLayer
from cogrpo_core.models.weights import load_module, read_config, save_module

ACTIONS = 4
WEIGHTS_FILE = "model.safetensors"
SINUSOID_DIM = 256
# Steps and their neighbours stay apart in the sinusoids when t/T is spread over this range.
TIME_SCALE = 1000.0
MAX_SHIFT = 20.0

Scale = Annotated[float, Field(gt=0, le=10)]


class SchedulePolicyConfig(FolderConfig):
    """The shape of a SchedulePolicy, as `schedule_policy/config.json` stores it."""

    feature_dim: Size
    hidden_dim: Size
    pooled_dim: Size
    time_dim: Size
    action_scales: tuple[Scale, Scale, Scale, Scale] = (1.0, 0.5, 0.5, 0.5)
    """What one unit of a raw action adds to logit r, log tau_s, log tau_r and log s."""
    sigma: Scale = 0.3
    """The standard deviation of every raw action."""
    active: tuple[Flag, Flag, Flag, Flag] = (True, True, True, True)
    """Which of r, tau_s, tau_r and s the policy moves; the others stay the base schedule's."""

    @classmethod
    def for_width(cls, feature_dim: int) -> Self:
        """The usual proportions for a transformer of width D, under 1 % of its parameters.

        For Meissonic's 1024 they give 9.3M, as the paper's 9M; for small ones about 1.5 D^2.
        """
        width = max(round(feature_dim * max(1 / 4, 5 / 8 * feature_dim / 1024)), 1)
        return cls(feature_dim=feature_dim, hidden_dim=2 * width, pooled_dim=width, time_dim=width)


class AdaLayerNorm(nn.Module):
    """LayerNorm over the last axis with scale and shift from the time; both start at zero."""

    def __init__(self, dim: int, time_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(time_dim, 2 * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, ..., dim], time [B, time_dim]."""
        shift, scale = self.linear(time).chunk(2, dim=-1)
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        out: Tensor = F.layer_norm(x, x.shape[-1:]) * (1 + scale.view(shape)) + shift.view(shape)
        return out


class SchedulePolicy(nn.Module):
    """A Gaussian over raw actions whose mean starts at zero: the base schedule, to the bit.

    Pointwise and depthwise convolutions read the grid, mean and maximum over it feed an MLP, the
    time enters by AdaLN. Time is continuous, so one policy serves any number of steps. Computes in
    float32 whatever the features are.
    """

    def __init__(self, config: SchedulePolicyConfig) -> None:
        super().__init__()
        self.config = config
        hidden, pooled, time = config.hidden_dim, config.pooled_dim, config.time_dim
        self.sinusoids = Sinusoids(SINUSOID_DIM)
        self.time_embed = TwoLayer(SINUSOID_DIM, time)
        self.project = nn.Linear(config.feature_dim, hidden)
        self.norm = AdaLayerNorm(hidden, time)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.pointwise = nn.Linear(hidden, pooled)
        self.mlp_in = nn.Linear(2 * pooled, hidden)
        self.mlp_norm = AdaLayerNorm(hidden, time)
        self.mlp_out = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, ACTIONS)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """The mean raw action [B, 4] for features [B, D, h, w] and time [B] = t/T in [0, 1]."""
        if features.ndim != 4 or features.shape[1] != self.config.feature_dim:
            raise ValueError(
                f"features are {tuple(features.shape)}, "
                f"not [batch, {self.config.feature_dim}, height, width]"
            )
        if time.shape != features.shape[:1]:
            raise ValueError(f"time is {tuple(time.shape)}, not ({features.shape[0]},)")
        with torch.autocast(features.device.type, enabled=False):
            emb = F.silu(self.time_embed(self.sinusoids(time.float() * TIME_SCALE)))
            x = self.norm(self.project(features.float().movedim(1, -1)), emb)
            x = F.gelu(self.depthwise(x.movedim(-1, 1))).movedim(1, -1)
            x = F.gelu(self.pointwise(x)).flatten(1, 2)
            x = self.mlp_in(torch.cat([x.mean(1), x.amax(1)], dim=-1))
            x = F.gelu(self.mlp_out(F.gelu(self.mlp_norm(x, emb))))
            mean: Tensor = self.last(x) * self._active(x)
            return mean

    def _active(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.active, dtype=like.dtype).to(like.device, non_blocking=True)

    def sample(self, mean: Tensor, noise: Tensor) -> Tensor:
        """The raw action [B, 4] that standard normal noise [B, 4] draws around the mean."""
        return mean + self.config.sigma * noise * self._active(mean)

    def log_prob(self, raw: Tensor, mean: Tensor, used: Tensor) -> Tensor:
        """The log-density [B] of raw actions [B, 4] over the components that `used` [B, 4] marks.

        A step that does not use a component (r and tau_r at the last one) leaves it out, and so
        does a policy that does not move it.
        """
        sigma = self.config.sigma
        used = used & self._active(used)
        score = -0.5 * ((raw - mean) / sigma).square() - math.log(sigma * math.sqrt(2 * math.pi))
        return torch.where(used, score, 0.0).sum(-1)

    def apply_action(self, base: Tensor, raw: Tensor) -> Tensor:
        """The actions [B, 4] that raw residuals [B, 4] make of a base schedule's rows [B, 4].

        r = sigmoid(logit(r0) + a1), tau_s = tau_s0 exp(a2), tau_r = tau_r0 exp(a3),
        s = s0 exp(a4), each a scaled. A residual of zero, a ratio of 0 or 1 and a temperature of 0
        come back to the bit.
        """
        scales = torch.tensor(self.config.action_scales).to(base.device, non_blocking=True)
        shift = (raw.float() * scales).clamp(-MAX_SHIFT, MAX_SHIFT)
        scaled = base.float() * shift.exp()
        # sigmoid(logit(r0) + a) = r0 exp(a) / (1 + r0 (exp(a) - 1)): exact at a = 0 and r0 = 0.
        ratio0 = base[:, 0].float()
        ratio = (scaled[:, 0] / (1 + ratio0 * shift[:, 0].expm1())).clamp(max=1.0)
        ratio = torch.where(ratio0 == 1, ratio0, ratio)
        return torch.cat([ratio.unsqueeze(1), scaled[:, 1:]], dim=1)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """The policy in `folder` (config.json and safetensors), in float32.

        Raises CheckpointError.
        """
        config = read_config(Path(folder) / "config.json", SchedulePolicyConfig)
        with torch.device("meta"):
            policy = cls(config)
        load_module(policy, Path(folder) / WEIGHTS_FILE, dtype=torch.float32, device=device)
        return policy.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and the weights. Raises CheckpointError on NaN."""
        values = self.config.model_dump(mode="json") | {"_class_name": "SchedulePolicy"}
        save_module(self, Path(folder) / WEIGHTS_FILE, config=values)
