"""The error of this package."""

from __future__ import annotations


class SchemaError(ValueError):
    """A file, store or checkpoint is not what its use asks for."""
