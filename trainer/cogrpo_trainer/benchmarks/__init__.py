"""Measurements of speed; each module runs by itself: python -m cogrpo_trainer.benchmarks.step."""
