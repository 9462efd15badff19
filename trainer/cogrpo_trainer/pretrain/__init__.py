"""Makes the embedded model from nothing: image codes, then transformer and text encoder."""
