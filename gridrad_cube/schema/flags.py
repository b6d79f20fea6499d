"""The bits that tell of a patch's quality, and which of them reject it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

from gridrad_cube.schema.errors import SchemaError


class Flag(enum.IntFlag):
    """Bits of ``<channel>_flags``. Set, never acted on at write time: what rejects is chosen when reading."""

    some_missing = 1
    all_missing = 2
    channel_absent = 4
    out_of_valid_range = 8
    non_finite = 16
    constant = 32
    local_outlier = 64
    global_outlier = 128
    night = 256
    no_echo = 512
    low_coverage = 1024
    unreadable = 2048
    padding = 4096
    low_sun = 8192
    limb = 16384


_REJECT_ALWAYS = (
    Flag.all_missing
    | Flag.channel_absent
    | Flag.non_finite
    | Flag.unreadable
    | Flag.constant
    | Flag.padding
    | Flag.low_coverage
)


def default_reject(kind: str) -> Flag:
    """The bits that keep a patch of a channel of this kind from training.

    Of companion fields only those of patches that have no pixels: a label that is nowhere or everywhere is one too.
    """
    if kind == "companion":
        return Flag.channel_absent | Flag.unreadable | Flag.padding
    return _REJECT_ALWAYS | Flag.night if kind == "visible" else _REJECT_ALWAYS


def reject_mask(reject: int | Flag | Iterable[str] | None, kind: str) -> int:
    """The rejecting bits as an integer: ``None`` for the default, names, or a mask as it is.

    Raises
    ------
    SchemaError
        If a name is no flag.
    """
    if reject is None:
        return int(default_reject(kind))
    if isinstance(reject, int):
        return int(reject)
    mask = 0
    for name in reject:
        if name not in Flag.__members__:
            raise SchemaError(f"reject: unknown flag {name!r}; expected some of {list(Flag.__members__)}")
        mask |= Flag[name]
    return int(mask)


def flag_attributes() -> dict[str, Any]:
    """CF attributes of a flag variable (dtype uint16)."""
    return {
        "standard_name": "quality_flag",
        "units": "1",
        "flag_masks": [int(f) for f in Flag],
        "flag_meanings": " ".join(f.name for f in Flag if f.name),
    }
