"""The method: models, schedules, sampler, trajectories, and the embedded world with its rewards."""

from cogrpo_core.torchvision_operators import watch

watch()
