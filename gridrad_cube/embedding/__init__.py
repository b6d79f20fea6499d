"""Turn a store into an embedding store with the same coordinates, by a network or without training; attention
maps.
"""

from gridrad_cube.embedding.attention import attention
from gridrad_cube.embedding.inputs import NO_PIXELS, Normalize
from gridrad_cube.embedding.network import Network
from gridrad_cube.embedding.run import Dtype, embed
from gridrad_cube.embedding.untrained import Model

__all__ = ["NO_PIXELS", "Dtype", "Model", "Network", "Normalize", "attention", "embed"]


def __dir__() -> list[str]:
    return __all__
