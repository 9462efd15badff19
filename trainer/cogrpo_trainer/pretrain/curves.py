"""Draws the curves of a pretraining run: `python -m cogrpo_trainer.pretrain.curves RUN OUT.png`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PANELS = {
    "decoder: PSNR, dB": ["decoder/psnr"],
    "transformer: loss over masked tokens, nats": ["model/loss"],
    "object tokens at 95 % masked, nats": [
        "model/object_loss_right",
        "model/object_loss_shuffled",
    ],
}


def draw(run: Path, out: Path) -> None:
    """One panel for each of `PANELS`, from the events in `run`/tensorboard."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    known = set(events.Tags()["scalars"])
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 4), layout="constrained")
    for axis, (title, tags) in zip(axes, PANELS.items(), strict=True):
        for tag in (tag for tag in tags if tag in known):
            points = sorted((event.step, event.value) for event in events.Scalars(tag))
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, linewidth=1, label=tag.rsplit("_", 1)[-1])
        if len(tags) > 1:
            axis.legend(title="caption")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
