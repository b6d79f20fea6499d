"""numba, where it is installed (``pip install 'gridrad-cube[jit]'``): inner loops as machine code."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def once(make: Callable[[], T]) -> Callable[[], T]:
    """Call a function of no arguments once, whichever threads ask: what is compiled twice takes twice as long."""
    lock, kept = threading.Lock(), functools.cache(make)

    @functools.wraps(make)
    def get() -> T:
        with lock:
            return kept()

    return get


@once
def find_numba() -> Any | None:
    """The package, or None without it.

    Warns
    -----
    RuntimeWarning
        If it is installed but cannot be imported, with its reason: it is older than numpy, say.
    """
    try:
        import numba
    except Exception as error:  # llvmlite without its library is an OSError, an unfit numpy anything
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            warnings.warn(
                f"numba is installed but cannot be imported ({error}); patches are read and decoded without it, in "
                "more time. Install versions of numba and numpy that fit.",
                RuntimeWarning,
                stacklevel=2,
            )
        return None
    return numba
