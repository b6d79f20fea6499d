"""Store and checkpoint to an embedding store with the same coordinates, at either level; and attention maps."""

from gridrad_cube.embedding.attention import attention
from gridrad_cube.embedding.network import Network, Pool
from gridrad_cube.embedding.patches import NO_PIXELS, Normalize
from gridrad_cube.embedding.run import embed
from gridrad_cube.embedding.work import Dtype

__all__ = ["NO_PIXELS", "Dtype", "Network", "Normalize", "Pool", "attention", "embed"]
