"""One denoising step as a pure function over samples at any steps, and the loop over T.

The step: sample every masked token, keep the surest by Gumbel top-k, mask the rest again. Actions
come from schedule.py or a scheduling policy, the inner loops (noise, draw, choice of the kept) from
kernels/; pipeline.py and the engine call it.

Shape letters: B samples, N image tokens, M masked positions of the whole batch (row-major over
[B,N]), V codes, D width, T steps.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cogrpo_core.ahead import Ahead, course, look_ahead, on_device, true_positions
from cogrpo_core.kernels.ops import fill_surest, sample_tokens, step_noise
from cogrpo_core.kernels.remask import Filled, remask_count
from cogrpo_core.models.schedule_policy import SchedulePolicy
from cogrpo_core.models.transformer import Conditioning, MeissonicTransformer
from cogrpo_core.noise import action_noise
from cogrpo_core.schedule import (
    ACTION_BOUNDS,
    GUIDANCE_SCALE,
    REMASK_RATIO,
    REMASK_TEMPERATURE,
    SAMPLE_TEMPERATURE,
    used_actions,
)

SAMPLER_VERSION = 1
"""Goes up whenever the same seed and actions would give other tokens."""

UNFILLED = 2**15 - 1
"""`fill_step` of a position that is still masked: later than every step."""


@dataclass(frozen=True)
class Samples:
    """B samples under way, each at its own step of its own T; one that is done is inert."""

    tokens_BN: Tensor
    fill_step_BN: Tensor
    token_logprob_BN: Tensor
    """log softmax(l / tau_s) of every kept token when it was drawn, 0 where still masked."""
    step_B: Tensor
    num_steps_B: Tensor
    seed_B: Tensor
    schedule_BT4: Tensor
    """Each sample's schedule, padded with zeros behind its T steps."""
    learned_B: Tensor
    """Whose actions a scheduling policy moves. They always take both passes of guidance."""
    explore_B: Tensor
    """Whose learned actions are drawn from the policy and not its mean."""

    @property
    def active_B(self) -> Tensor:
        """Which samples have steps left."""
        return self.step_B < self.num_steps_B

    def select(self, index: Tensor) -> "Samples":
        """The samples `index`."""
        return Samples(*(getattr(self, field.name)[index] for field in fields(self)))

    def update(self, index: Tensor, part: "Samples") -> "Samples":
        """These samples with `part` in place of the samples `index`."""
        columns = [
            getattr(self, field.name).index_copy(0, index, getattr(part, field.name))
            for field in fields(self)
        ]
        return Samples(*columns)


def start_samples(
    seeds: Sequence[int],
    schedules: Sequence[Tensor],
    num_tokens: int,
    mask_token_id: int,
    *,
    learned: Sequence[bool] | None = None,
    explore: Sequence[bool] | None = None,
    device: torch.device | str = "cpu",
) -> Samples:
    """Samples before their first step, all masks: one for each seed and its schedule [T,4]."""
    shape, none = (len(seeds), num_tokens), [False] * len(seeds)
    num_steps_B = torch.tensor([len(schedule) for schedule in schedules], device=device)
    return Samples(
        tokens_BN=torch.full(shape, mask_token_id, dtype=torch.int64, device=device),
        fill_step_BN=torch.full(shape, UNFILLED, dtype=torch.int64, device=device),
        token_logprob_BN=torch.zeros(shape, dtype=torch.float32, device=device),
        step_B=torch.zeros_like(num_steps_B),
        num_steps_B=num_steps_B,
        seed_B=torch.tensor(seeds, dtype=torch.int64, device=device),
        schedule_BT4=pad_sequence(list(schedules), batch_first=True).to(device),
        learned_B=torch.tensor(learned or none, device=device),
        explore_B=torch.tensor(explore or none, device=device),
    )


def masked_positions(samples: Samples, mask_token_id: int) -> Tensor:
    """The positions [B,N] that the next step has to draw; none in samples that are done."""
    return (samples.tokens_BN == mask_token_id) & samples.active_B[:, None]


def guide(conditional_MD: Tensor, unconditional_MD: Tensor, scale_M: Tensor) -> Tensor:
    """Classifier-free guidance u + s (c - u) in float32, exactly c where s = 1 (Eq. 2).

    Linear, so it may be taken on the states before the head's last, linear layer as well as on
    logits.
    """
    c_MD, u_MD, s_M1 = conditional_MD.float(), unconditional_MD.float(), scale_M[:, None]
    return torch.where(s_M1 == 1, c_MD, u_MD + s_M1 * (c_MD - u_MD))


def denoise_step(
    samples: Samples, logits_MV: Tensor, actions_B4: Tensor, mask_token_id: int
) -> Samples:
    """The samples one step on, from the guided logits of `masked_positions` (Eq. 2-5).

    Every sample has its own step, T, seed and action; the noise is that of its seed and step, so
    nothing depends on the rest of the batch. Samples that are done come back as they are. Rows of
    logits beyond the masked positions are padding, and have no effect.
    """
    masked_BN = masked_positions(samples, mask_token_id)
    position_M = true_positions(masked_BN, len(logits_MV))
    sample_M = position_M // masked_BN.shape[1]
    uniform_BN, gumbel_BN = step_noise(samples.seed_B, samples.step_B, masked_BN.shape[1])
    draw = sample_tokens(
        logits_MV, actions_B4[sample_M, SAMPLE_TEMPERATURE], uniform_BN.flatten()[position_M]
    )
    last_B = samples.step_B + 1 >= samples.num_steps_B
    count_B = remask_count(
        actions_B4[:, REMASK_RATIO], masked_BN.sum(dim=1), masked_BN.shape[1], last_B
    )
    filled = fill_surest(
        Filled(samples.tokens_BN, samples.fill_step_BN, samples.token_logprob_BN),
        masked_BN,
        draw,
        gumbel_BN,
        actions_B4[:, REMASK_TEMPERATURE],
        count_B,
        samples.step_B,
    )
    return replace(samples, **filled._asdict(), step_B=samples.step_B + samples.active_B)


@dataclass(frozen=True)
class Turn:
    """What one step did to B samples; all rows are those of `samples`."""

    samples: Samples
    """After the step."""
    actions_B4: Tensor
    """The actions taken; zeros where a sample was done before."""
    raw_actions_B4: Tensor
    """The unconstrained actions of the scheduling policy; zeros where it did not act."""
    action_logprob_B: Tensor
    """The policy's log-density of the raw action; zeros where it did not act."""
    features: Tensor | None
    """[B,D,h,w]: what the policy read, if it acted; zeros where a sample was done before. From
    `denoise` only where it is asked for."""


def denoise_turn(
    transformer: MeissonicTransformer,
    samples: Samples,
    conditional: Conditioning,
    unconditional: Conditioning,
    ahead: Ahead,
    *,
    grid: tuple[int, int],
    policy: SchedulePolicy | None = None,
) -> Turn:
    """One guided forward pass and one step for samples that all have steps left.

    `ahead` is what the host knows of the step, and `grid` is (H, W) with N = H*W. Without a policy,
    learned samples take the actions of their schedule: so a logged trajectory is replayed. Samples
    with guidance 1 that are not learned skip the unconditional pass. The host waits for nothing.
    What it makes are inference tensors, which no gradient can be taken through; a copy is none.
    """
    # Gathered weights must not be inference tensors: training gathers into the same memory.
    quiet = torch.no_grad if transformer.sharded else torch.inference_mode
    with quiet():
        rows_B = torch.arange(len(samples.step_B), device=samples.step_B.device)
        actions_B4 = samples.schedule_BT4[rows_B, samples.step_B]
        mask_token_id = transformer.config.mask_token_id
        position_M = true_positions(masked_positions(samples, mask_token_id), ahead.masked)
        acting = policy if ahead.learned else None
        passes = _passes if not ahead.alike else _first_passes
        conditional_MD, unconditional_MD, features = passes(
            transformer,
            samples,
            conditional,
            unconditional,
            position_M,
            ahead,
            grid,
            with_features=acting is not None,
        )
        raw_B4, logprob_B = torch.zeros_like(actions_B4), torch.zeros_like(actions_B4[:, 0])
        if acting is not None and features is not None:
            actions_B4, raw_B4, logprob_B = _policy_actions(acting, samples, features, actions_B4)

        sample_M = position_M // samples.tokens_BN.shape[1]
        scale_M = actions_B4[sample_M, GUIDANCE_SCALE]
        states_MD = guide(conditional_MD, unconditional_MD, scale_M).to(conditional_MD.dtype)
        logits_MV = transformer.head(states_MD)
        stepped = denoise_step(samples, logits_MV, actions_B4, mask_token_id)
        return Turn(stepped, actions_B4, raw_B4, logprob_B, features)


def _first_passes(
    transformer: MeissonicTransformer,
    samples: Samples,
    conditional: Conditioning,
    unconditional: Conditioning,
    position_M: Tensor,
    ahead: Ahead,
    grid: tuple[int, int],
    *,
    with_features: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`_passes` of first steps, where all is masked: made once for samples that begin alike."""
    num_tokens, device = samples.tokens_BN.shape[1], position_M.device
    distinct = sorted(set(ahead.alike))
    index_R = on_device(distinct, device)
    *states, features = _passes(
        transformer,
        samples.select(index_R),
        conditional.select(index_R),
        unconditional.select(index_R),
        position_M[: len(distinct) * num_tokens],
        replace(ahead, guided=tuple(i for i, row in enumerate(distinct) if row in ahead.guided)),
        grid,
        with_features=with_features,
    )
    place_B = on_device([distinct.index(row) for row in ahead.alike], device)
    conditional_MD, unconditional_MD = (
        rows_KD.unflatten(0, (-1, num_tokens))[place_B].flatten(0, 1) for rows_KD in states
    )
    return conditional_MD, unconditional_MD, None if features is None else features[place_B]


def _passes(
    transformer: MeissonicTransformer,
    samples: Samples,
    conditional: Conditioning,
    unconditional: Conditioning,
    position_M: Tensor,
    ahead: Ahead,
    grid: tuple[int, int],
    *,
    with_features: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Conditional and unconditional states of masked positions [M,D] from one pass; features.

    Where a sample is not guided its conditional states stand in for the unconditional ones.
    """
    count, num_tokens = samples.tokens_BN.shape
    device = samples.tokens_BN.device
    guided: Sequence[int] = ahead.guided
    if guided and device.type != "cpu":
        guided = range(count)  # all or none, or the sizes would have to be asked for
    rows_R = on_device([*range(count), *guided], device)
    # Which of the M positions the second pass computes, and where it has them.
    second_K, position_K = None, position_M
    if 0 < len(guided) < count:
        order_B = torch.full((count,), -1, device=device)
        order_B[rows_R[count:]] = torch.arange(len(guided), device=device)
        order_M = order_B[position_M // num_tokens]
        second_K = (order_M >= 0).nonzero()[:, 0]
        position_K = (order_M * num_tokens + position_M % num_tokens)[second_K]
    position_R = position_M
    if guided:
        position_R = torch.cat([position_M, position_K + count * num_tokens])
    inputs = (
        samples.tokens_BN[rows_R].unflatten(1, grid),
        (samples.num_steps_B - 1 - samples.step_B)[rows_R],
        Conditioning.cat([conditional, unconditional.select(rows_R[count:])]),
    )
    featured = count if with_features else 0
    hidden_RD, rows_features = transformer.hidden_at(*inputs, position_R, featured=featured)
    features = rows_features if with_features else None
    conditional_MD, rest_KD = hidden_RD.split([len(position_M), len(position_R) - len(position_M)])
    if second_K is not None:
        return conditional_MD, conditional_MD.index_copy(0, second_K, rest_KD), features
    return conditional_MD, rest_KD if guided else conditional_MD, features


def _policy_actions(
    policy: SchedulePolicy, samples: Samples, features: Tensor, base_B4: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Actions [B,4], raw actions [B,4] and their log-density [B] (Eq. 14), in learned rows."""
    mean_B4 = policy(features, samples.step_B / samples.num_steps_B).float()
    noise_B4 = torch.zeros_like(mean_B4)
    # To look who explores costs nothing on a CPU; elsewhere the host would wait.
    if mean_B4.device.type != "cpu" or bool(samples.explore_B.any()):
        noise_B4 = action_noise(samples.seed_B, samples.step_B, mean_B4.shape[1])
    raw_B4 = policy.sample(mean_B4, noise_B4 * samples.explore_B[:, None])
    used_B4 = used_actions(samples.step_B, samples.num_steps_B)
    logprob_B = policy.log_prob(raw_B4, mean_B4, used_B4)
    low_4, high_4 = on_device(ACTION_BOUNDS, raw_B4.device).T
    actions_B4 = policy.apply_action(base_B4, raw_B4).clamp(low_4, high_4)
    learned_B1 = samples.learned_B[:, None]
    return (
        torch.where(learned_B1, actions_B4, base_B4),
        raw_B4 * learned_B1,
        logprob_B * samples.learned_B,
    )


def denoise(
    transformer: MeissonicTransformer,
    samples: Samples,
    conditional: Conditioning,
    unconditional: Conditioning,
    *,
    grid: tuple[int, int],
    policy: SchedulePolicy | None = None,
    samples_per_pass: int | None = None,
    texts: Sequence[Hashable] = (),
    keep_features: bool = False,
) -> Iterator[Turn]:
    """Steps `samples` until all are done, yielding a `Turn` over all B after every step.

    `samples_per_pass` splits the batch into forward passes of that many samples; with 1, no float
    of a sample depends on the others. `texts` names each sample's conditioning: where names are
    equal, a pass makes the first step once. The rest as in `denoise_turn`.
    """
    device, num_tokens = samples.step_B.device, samples.tokens_BN.shape[1]
    schedules, learned = samples.schedule_BT4.cpu(), samples.learned_B.tolist()
    courses = [
        course(actions_T4[:steps], num_tokens, learned=each)
        for actions_T4, steps, each in zip(
            schedules, samples.num_steps_B.tolist(), learned, strict=True
        )
    ]
    step_B: list[int] = samples.step_B.tolist()
    while active := [row for row, each in enumerate(courses) if step_B[row] < each.num_steps]:
        actions_B4 = torch.zeros_like(samples.schedule_BT4[:, 0])
        raw_B4, logprob_B = torch.zeros_like(actions_B4), torch.zeros_like(actions_B4[:, 0])
        features = None
        size = samples_per_pass or len(active)
        for rows in (active[first : first + size] for first in range(0, len(active), size)):
            index = on_device(rows, device)
            turn = denoise_turn(
                transformer,
                samples.select(index),
                conditional.select(index),
                unconditional.select(index),
                look_ahead(
                    (courses[row] for row in rows),
                    (step_B[row] for row in rows),
                    [texts[row] for row in rows] if texts else (),
                ),
                grid=grid,
                policy=policy,
            )
            samples = samples.update(index, turn.samples)
            actions_B4[index] = turn.actions_B4
            raw_B4[index] = turn.raw_actions_B4
            logprob_B[index] = turn.action_logprob_B
            if keep_features and turn.features is not None:
                if features is None:
                    features = turn.features.new_zeros(len(step_B), *turn.features.shape[1:])
                features[index] = turn.features
            for row in rows:
                step_B[row] += 1
        yield Turn(samples, actions_B4, raw_B4, logprob_B, features)
