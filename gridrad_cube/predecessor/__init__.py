"""Read the predecessor's files: crops and patches, embeddings, checkpoints. Needs torch.

The files are not trusted: pickles may hold only tensors and plain Python, and declared sizes are compared
with those of
the files.
"""

from gridrad_cube.predecessor.checkpoints import from_checkpoint
from gridrad_cube.predecessor.cube import from_npz, from_pt
from gridrad_cube.predecessor.features import from_features

__all__ = ["from_checkpoint", "from_features", "from_npz", "from_pt"]


def __dir__() -> list[str]:
    return __all__
