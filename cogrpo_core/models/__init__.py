"""The models: transformer, text encoder, VQ and scheduling policy, and the loader of their folders."""
