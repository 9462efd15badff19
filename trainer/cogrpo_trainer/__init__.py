"""Everything that trains or measures a model, offline."""

import cogrpo_core as cogrpo_core  # before anything that imports torchvision
