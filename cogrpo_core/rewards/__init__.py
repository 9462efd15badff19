"""Rewards: scores of pictures for prompts, those of the embedded world and their composite."""
