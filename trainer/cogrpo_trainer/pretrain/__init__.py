"""Makes the embedded model from nothing: image codes (`codes.py`), then transformer and text encoder."""
