"""The text of a batch of trajectories, encoded once; its projection is part of the trained model.

Shape letters: B trajectories, U distinct texts, L text positions, M steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cogrpo_core.models.checkpoint import Checkpoint
from cogrpo_core.models.transformer import Conditioning, MeissonicTransformer
from cogrpo_core.pipeline import AESTHETIC_SCORE
from cogrpo_core.trajectory import Trajectory


class Conditions:
    """Text states of the prompts and negative prompts of B trajectories (the encoder is frozen)."""

    @torch.no_grad()
    def __init__(self, checkpoint: Checkpoint, trajectories: Sequence[Trajectory]) -> None:
        texts = dict.fromkeys(
            text for each in trajectories for text in (each.prompt, each.negative_prompt)
        )
        index = {text: i for i, text in enumerate(texts)}
        # On a CPU one by one, as the sampler does: a text's states depend on no other's.
        device = checkpoint.text_encoder.device
        every, size = list(texts), 1 if device.type == "cpu" else len(texts)
        parts = (every[first : first + size] for first in range(0, len(every), size))
        states = [checkpoint.text_encoder.encode(part) for part in parts]
        self.hidden_ULJ = torch.cat([each.encoder_hidden_states for each in states])
        self.pooled_UP = torch.cat([each.pooled_projections for each in states])
        self.prompt_B = torch.tensor([index[each.prompt] for each in trajectories], device=device)
        self.negative_B = torch.tensor(
            [index[each.negative_prompt] for each in trajectories], device=device
        )
        first = trajectories[0]
        self.micro_5 = torch.tensor(
            [float(first.width), float(first.height), 0.0, 0.0, AESTHETIC_SCORE], device=device
        )

    def texts(self, sample_M: Tensor) -> Tensor:
        """The numbers of the prompts of the trajectories `sample_M`, then of their negative ones:
        [2M]."""
        return torch.cat([self.prompt_B[sample_M], self.negative_B[sample_M]])

    def rows(
        self, transformer: MeissonicTransformer, sample_M: Tensor
    ) -> tuple[Conditioning, Conditioning]:
        """Conditional and unconditional conditioning of the trajectories `sample_M`.

        Keeps the gradient to the projections; each distinct text is projected once.
        """
        distinct, place_2M = self.texts(sample_M).unique(return_inverse=True)
        projected = transformer.condition(
            self.hidden_ULJ[distinct],
            self.pooled_UP[distinct],
            self.micro_5.expand(len(distinct), -1),
        )
        prompt_M, negative_M = place_2M.chunk(2)
        return projected.select(prompt_M), projected.select(negative_M)
