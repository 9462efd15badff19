"""Policy versions that a model can load, and one that none should."""

import torch
from safetensors.torch import save_file

from cogrpo_core.exchange.policy_registry import Facts, PolicyRegistry
from cogrpo_core.exchange.policy_weights import FullModel, publish
from cogrpo_core.models.checkpoint import Checkpoint


def full(registry: PolicyRegistry, model: Checkpoint, number: int, strength: float = 0.1) -> str:
    """Publishes a version with other weights, which makes other pictures."""
    generator = torch.Generator().manual_seed(number)
    weights = {
        name: value + strength * torch.randn(value.shape, generator=generator)
        for name, value in model.transformer.state_dict().items()
    }
    return publish(registry, model, FullModel(weights), evidence={"number": number})


def not_finite(registry: PolicyRegistry, model: Checkpoint) -> str:
    """A version whose hashes are right and whose weights are not finite."""
    weights = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    weights[min(weights)].fill_(torch.nan)
    return registry.add(
        lambda folder: save_file(weights, folder / "transformer.safetensors"),
        Facts(kind="full", base=model.fingerprint),
    )


def promote(registry: PolicyRegistry, version: str | None, *, forced: bool = False) -> None:
    """Makes a version champion, whoever is."""
    now = registry.aliases().champion
    registry.move("champion", version, expected=now, who="test", forced=forced)
