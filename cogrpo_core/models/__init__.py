"""The models: transformer, text encoder, VQ and scheduling policy, and their folders' loader."""
