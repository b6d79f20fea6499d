"""The predecessor's files, both ways: crops and patches, embeddings, checkpoints. Needs torch."""

from gridrad_cube.convert.cube import from_npz, from_pt

__all__ = ["from_npz", "from_pt"]
