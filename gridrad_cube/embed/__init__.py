"""Store and checkpoint to an embedding store with the same coordinates, at either level."""

from gridrad_cube.embed.network import Network, Pool
from gridrad_cube.embed.patches import NO_PIXELS, Normalize
from gridrad_cube.embed.run import embed

__all__ = ["NO_PIXELS", "Network", "Normalize", "Pool", "embed"]
