"""The embedded world: scenes of simple shapes, their captions, a renderer and an exact checker."""
