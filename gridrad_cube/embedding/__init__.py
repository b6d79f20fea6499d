"""From a store and a checkpoint to an embedding store with the same coordinates, at either level; attention maps."""

from gridrad_cube.embedding.attention import attention
from gridrad_cube.embedding.inputs import NO_PIXELS, Normalize
from gridrad_cube.embedding.network import Network, Pool
from gridrad_cube.embedding.run import Dtype, embed

__all__ = ["NO_PIXELS", "Dtype", "Network", "Normalize", "Pool", "attention", "embed"]


def __dir__() -> list[str]:
    return __all__
