"""Co-GRPO's mathematics: advantages, likelihoods, objective. The trainer puts them to work."""
