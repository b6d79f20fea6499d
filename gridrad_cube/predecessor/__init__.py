"""Reading the predecessor's files: crops and patches, embeddings, checkpoints. Needs torch.

What is read is not trusted: pickles hold tensors and plain Python alone, sizes are held against the file's.
"""

from gridrad_cube.predecessor.checkpoints import from_checkpoint
from gridrad_cube.predecessor.cube import from_npz, from_pt
from gridrad_cube.predecessor.features import from_features

__all__ = ["from_checkpoint", "from_features", "from_npz", "from_pt"]


def __dir__() -> list[str]:
    return __all__
