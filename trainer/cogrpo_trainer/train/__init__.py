"""`cogrpo train`: Co-GRPO on prompts and rewards; rollouts, learner, alternating cycle, resume."""
