"""The vocabulary: dimensions, channels, packing, flags, statistics and the specs of a store.

This module imports numpy only. It reads no file and uses no device.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

__all__ = [
    "ATTRIBUTE",
    "CHANNELS",
    "ECHO_STATISTICS",
    "FORMAT_VERSION",
    "HISTOGRAM_BINS",
    "LOG_STATISTICS",
    "OTHER_ATTRIBUTES",
    "PATCH_SIZE",
    "STATISTICS",
    "TIME_FILL",
    "TIME_UNITS",
    "Channel",
    "Flag",
    "Kind",
    "Packing",
    "Placement",
    "QualitySpec",
    "RadarSpec",
    "Recipe",
    "SchemaError",
    "TileSpec",
    "build_spec",
    "channel_in",
    "channel_label",
    "channel_of",
    "counted",
    "default_reject",
    "flag_attributes",
    "mask_secrets",
    "printable",
    "read_attribute",
    "reject_mask",
    "statistic_units",
    "statistics_of",
]


def __dir__() -> list[str]:
    return __all__


#: Secrets in URLs: a password, with or without a name before it, and values of a query.
_PASSWORD = re.compile(
    r"([A-Za-z][\w+.-]*:/+)(?!(?:(?<=abfs://)|(?<=abfss://))[\w-]+@[\w-]+\.)[^\s/@:]*(?::(?!\d+/)[^\s@]*)?@"
)
_TOKEN = re.compile(r"(?i)([?&][\w.-]*(?:sig|token|secret|password|key|credential)[\w.-]*=)[^\s&'\"]+")


class SchemaError(ValueError):
    """A file, store, checkpoint or parameter is not what the function expects."""


#: Edge of a patch in pixels, unless a recipe says otherwise.
PATCH_SIZE = 256
#: ``time`` is stored as int64 seconds since this epoch, UTC.
TIME_UNITS = "seconds since 1970-01-01"
#: Code of a missing time (xarray decodes it to NaT).
TIME_FILL = -(2**63)
#: Version of the layout of ``patches.zarr``; readers refuse a newer one.
FORMAT_VERSION = 1
#: Name of the root attribute that holds all that this package knows of a store.
ATTRIBUTE = "gridrad_cube"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in words, such as ``1 crop`` or ``2 crops``.

    Parameters
    ----------
    number
        The number.
    noun
        The noun in the singular; its plural ends in s.

    Returns
    -------
    The text.
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(text: str, keep: str = "") -> str:
    """Return text from outside, such as names of files and attributes, without what controls a terminal.

    Parameters
    ----------
    text
        Any text.
    keep
        Control characters that stay, such as ends of lines.

    Returns
    -------
    The text with ``?`` for each control, format and undefined character.
    """
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def mask_secrets(text: str) -> str:
    """Return a message with ``...`` in place of the passwords and tokens of URLs in it.

    Parameters
    ----------
    text
        The message.

    Returns
    -------
    The message to show.
    """
    return _TOKEN.sub(r"\1...", _PASSWORD.sub(r"\1...@", text)) if ":" in text else text


def read_attribute(attributes: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return the ``gridrad_cube`` attribute of a store, or of a dataset that was opened from one.

    A saved dataset holds it as JSON text.

    Parameters
    ----------
    attributes
        Attributes of the store or dataset.
    where
        Name of the store, for messages.

    Returns
    -------
    The attribute as a mapping.

    Raises
    ------
    SchemaError
        If the attribute is missing, is from a newer version, or describes int8 embeddings, which earlier
        versions could write.
    """
    info = attributes.get(ATTRIBUTE)
    info = _parse(info) if isinstance(info, str) else info
    if not isinstance(info, Mapping):
        raise SchemaError(
            f"{where}: has no attribute {ATTRIBUTE}; expected a store that gridrad-cube wrote, or a dataset that "
            "keeps the attributes of one: xarray.set_options(keep_attrs=True)"
        )
    if info.get("format_version", 0) > FORMAT_VERSION:
        raise SchemaError(
            f"{where}: written by a newer gridrad-cube (format {info['format_version']}, this one reads up to "
            f"{FORMAT_VERSION}). Upgrade gridrad-cube."
        )
    if info.get("dtype") == "int8":
        raise SchemaError(
            f"{where}: this store holds 8-bit integers, which this version does not read; embed again with float16"
        )
    return dict(info)


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the codes of one variable represent physical values.

    ``value = code * scale_factor + add_offset``. The other members are codes, which are compared for
    equality:
    a bin that was not observed (``fill_value``, the CF ``_FillValue``), a bin that was observed without
    echo, a bin whose echo quality control removed, a bin whose source value was not finite or outside
    the valid range of the field. ``echo_minimum`` is the smallest code of an echo. Codes outside
    ``[valid_minimum, valid_maximum]`` are not data. With a float dtype the codes are the values.
    """

    dtype: str = "uint16"
    scale_factor: float = 1.0
    add_offset: float = 0.0
    fill_value: float | None = None
    valid_minimum: float | None = None
    valid_maximum: float | None = None
    no_echo: float | None = None
    low_confidence: float | None = None
    clutter: float | None = None
    out_of_range: float | None = None
    non_finite: float | None = None
    echo_minimum: float | None = None

    def missing(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return where nothing was observed: the fill code, or NaN in a float variable.

        Parameters
        ----------
        codes
            Packed codes of any shape.

        Returns
        -------
        Booleans of the same shape.
        """
        codes = np.asarray(codes)
        out = np.isnan(codes) if codes.dtype.kind == "f" else np.zeros(codes.shape, bool)
        if self.fill_value is not None and not math.isnan(self.fill_value):
            out |= codes == self._code(self.fill_value)
        return out

    def out_of_valid_range(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return where a source value was outside its valid range. Missing and infinite values do not count.

        Parameters
        ----------
        codes
            Packed codes of any shape.

        Returns
        -------
        Booleans of the same shape.
        """
        codes = np.asarray(codes)
        if self.out_of_range is not None and codes.dtype.kind != "f":
            return codes == self._code(self.out_of_range)
        out = np.zeros(codes.shape, bool)
        if self.valid_minimum is not None:
            out |= codes < self._code(self.valid_minimum)
        if self.valid_maximum is not None:
            out |= codes > self._code(self.valid_maximum)
        for special in (self.no_echo, self.low_confidence, self.clutter):
            if special is not None:
                out &= codes != self._code(special)
        return out & ~self.missing(codes) & ~self.not_finite(codes)

    def not_finite(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return where the source value was infinite.

        Parameters
        ----------
        codes
            Packed codes of any shape.

        Returns
        -------
        Booleans of the same shape.
        """
        codes = np.asarray(codes)
        if codes.dtype.kind == "f":
            return np.isinf(codes)
        if self.non_finite is None:
            return np.zeros(codes.shape, bool)
        return codes == self._code(self.non_finite)

    def observed(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return where the instrument observed and its value may be used, with or without an echo.

        Parameters
        ----------
        codes
            Packed codes of any shape.

        Returns
        -------
        Booleans of the same shape.
        """
        codes = np.asarray(codes)
        return ~(self.missing(codes) | self.not_finite(codes) | self.out_of_valid_range(codes))

    def echo(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return where there is a measured value: an echo, or any observed pixel of a field without echoes.

        Parameters
        ----------
        codes
            Packed codes of any shape.

        Returns
        -------
        Booleans of the same shape.
        """
        codes = np.asarray(codes)
        out = self.observed(codes)
        if self.echo_minimum is not None:
            out &= codes >= self._code(self.echo_minimum)
        return out

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return physical values. No-echo codes are decoded by the same formula.

        Parameters
        ----------
        codes
            Packed codes of any shape.

        Returns
        -------
        float32, NaN where not observed.
        """
        codes = np.asarray(codes)
        values = codes.astype(np.float32)
        values *= np.float32(self.scale_factor)
        values += np.float32(self.add_offset)
        values[~self.observed(codes)] = np.nan
        return values

    def encode(self, values: npt.ArrayLike, *, no_echo: npt.ArrayLike | None = None) -> np.ndarray:
        """Return the codes of physical values.

        NaN becomes "not observed". Infinities and values out of range get the codes for them.

        Parameters
        ----------
        values
            Physical values of any shape.
        no_echo
            Mask of observed bins without echo.

        Returns
        -------
        Codes in the dtype of the packing.

        Raises
        ------
        SchemaError
            If the packing has no code for a missing value or for "no echo".
        """
        values = np.asarray(values, dtype=np.float64)
        if np.dtype(self.dtype).kind == "f":
            codes = values.astype(self.dtype)
        else:
            limits = np.iinfo(self.dtype)
            bounds = (
                self.valid_minimum if self.echo_minimum is None else self.echo_minimum,
                self.valid_maximum,
            )
            low = limits.min if bounds[0] is None else bounds[0]
            high = limits.max if bounds[1] is None else bounds[1]
            finite = np.isfinite(values)
            scaled = np.rint((np.where(finite, values, 0.0) - self.add_offset) / self.scale_factor)
            inside = (scaled >= low) & (scaled <= high)
            codes = np.where(inside, scaled, low).astype(self.dtype)
            if self.out_of_range is not None:
                codes[finite & ~inside] = self._code(self.out_of_range)
            if self.non_finite is not None:
                codes[np.isinf(values)] = self._code(self.non_finite)
            if self.fill_value is None and np.isnan(values).any():
                raise SchemaError("a value is missing but the packing has no fill_value; give it one")
            if self.fill_value is not None:
                codes[np.isnan(values)] = self._code(self.fill_value)
        if no_echo is not None:
            if self.no_echo is None:
                raise SchemaError("no_echo given for a packing that has no code for it")
            codes[np.asarray(no_echo, bool)] = self._code(self.no_echo)
        return codes

    def _code(self, value: float) -> Any:
        return np.dtype(self.dtype).type(value)

    def to_attributes(self) -> dict[str, Any]:
        """Return CF attributes (``scale_factor``, ``add_offset``, ``_FillValue``, ``valid_range``) and the
        codes.

        Returns
        -------
        Attributes of a variable.
        """
        number = float if np.dtype(self.dtype).kind == "f" else int
        attributes: dict[str, Any] = {}
        if number is int:
            attributes |= {"scale_factor": self.scale_factor, "add_offset": self.add_offset}
            if self.fill_value is not None:
                attributes["_FillValue"] = number(self.fill_value)
        if self.valid_minimum is not None and self.valid_maximum is not None:
            attributes["valid_range"] = [number(self.valid_minimum), number(self.valid_maximum)]
        codes = {f"{name}_code": getattr(self, name) for name in _CODE_NAMES}
        return attributes | {name: number(code) for name, code in codes.items() if code is not None}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], dtype: npt.DTypeLike) -> Self:
        """Return the packing that the attributes of a variable describe, the inverse of `to_attributes`.

        Parameters
        ----------
        attributes
            Attributes of the variable.
        dtype
            Dtype of its codes.

        Returns
        -------
        The packing.
        """
        low, high = attributes.get("valid_range", (None, None))
        codes = {name: attributes.get(f"{name}_code") for name in _CODE_NAMES}
        codes |= {"fill_value": attributes.get("_FillValue"), "valid_minimum": low, "valid_maximum": high}
        return cls(
            dtype=np.dtype(dtype).name,
            scale_factor=float(attributes.get("scale_factor", 1.0)),
            add_offset=float(attributes.get("add_offset", 0.0)),
            **{name: np.asarray(code).item() for name, code in codes.items() if code is not None},
        )


_CODE_NAMES = ("no_echo", "low_confidence", "clutter", "out_of_range", "non_finite", "echo_minimum")


Kind = Literal["infrared", "visible", "radar", "rain", "field", "other"]
#: Attribute of a channel of kind ``other``, as the store format writes it.
OTHER_ATTRIBUTES = {"role": "companion"}


def _radar_packing(step: float, offset: float) -> Packing:
    # Codes 1 to 3 decode to about `offset`: far below any echo, so they can be distinguished with plain xarray.
    return Packing(
        scale_factor=step, add_offset=offset - step, fill_value=0, no_echo=1, low_confidence=2, clutter=3,
        out_of_range=4, non_finite=5, echo_minimum=16,
    )  # fmt: skip


@dataclass(frozen=True)
class Channel:
    """One physical field: its units, and how float sources of it are packed.

    Histograms and color scales span ``typical_range`` (in ``units``); values outside of it are valid. Readers
    mark values
    above ``physical_maximum`` as out of the valid range.
    """

    name: str
    kind: Kind
    units: str
    long_name: str
    packing: Packing
    typical_range: tuple[float, float]
    standard_name: str | None = None
    physical_maximum: float = math.inf

    @property
    def has_echo(self) -> bool:
        """True if statistics count echo pixels only (radar and rain)."""
        return self.packing.echo_minimum is not None

    def attributes(self) -> dict[str, Any]:
        """Return the CF attributes of the field, without those of its packing.

        Returns
        -------
        Attributes of a variable.
        """
        standard_name = {"standard_name": self.standard_name} if self.standard_name else {}
        return {"units": self.units, "long_name": self.long_name, **standard_name}


# fmt: off
_DBZ = _radar_packing(0.01, -99.0)
_SHEAR = _radar_packing(1e-5, -0.2)
_KELVIN = Packing(
    scale_factor=0.01, fill_value=65535, out_of_range=65534, non_finite=65533,
    valid_minimum=15000, valid_maximum=35000,
)
_FRACTION = Packing(
    scale_factor=0.0001, fill_value=65535, out_of_range=65534, non_finite=65533,
    valid_minimum=0, valid_maximum=20000,
)
_RAIN = Packing(
    scale_factor=0.01, add_offset=-0.01, fill_value=0, no_echo=1, out_of_range=65534, non_finite=65535,
    echo_minimum=2, valid_minimum=1, valid_maximum=65000,
)
_Z = "equivalent_reflectivity_factor"
# The largest reflectivity that a WSR-88D can report is 94.5 dBZ (NOAA ROC, Interface Control Document 2620010).
_DBZ_MAXIMUM = 95.0
# 31.2 mm in one minute, the WMO's record: Engelbrecht and Brancato (1959), Monthly Weather Review 87(8), 303-306.
_RAIN_MAXIMUM = 1872.0
_CHANNELS = (
    Channel("ir_brightness_temperature", "infrared", "K", "infrared brightness temperature", _KELVIN, (190.0, 320.0),
            "toa_brightness_temperature"),
    Channel("visible_reflectance", "visible", "1", "visible reflectance", _FRACTION, (0.0, 1.2),
            "toa_bidirectional_reflectance"),
    Channel("reflectivity", "radar", "dBZ", "radar reflectivity", _DBZ, (-10.0, 75.0), _Z,
            _DBZ_MAXIMUM),
    Channel("reflectivity_column_maximum", "radar", "dBZ", "column maximum reflectivity", _DBZ, (-10.0, 75.0), _Z,
            _DBZ_MAXIMUM),
    Channel("echo_top_height", "radar", "km", "echo-top height above mean sea level", _DBZ, (0.0, 22.0)),
    Channel("precipitation_rate", "rain", "mm h-1", "precipitation rate", _RAIN, (0.0, 150.0),
            "lwe_precipitation_rate", _RAIN_MAXIMUM),
    Channel("spectrum_width", "field", "m s-1", "Doppler velocity spectrum width", _DBZ, (0.0, 20.0)),
    Channel("azimuthal_shear", "field", "s-1", "azimuthal shear", _SHEAR, (-0.02, 0.02)),
    Channel("divergence", "field", "s-1", "radial divergence", _SHEAR, (-0.02, 0.02)),
    Channel("differential_reflectivity", "field", "dB", "differential reflectivity", _DBZ, (-4.0, 8.0)),
    Channel("specific_differential_phase", "field", "degree km-1", "specific differential phase", _DBZ, (-2.0, 10.0)),
    Channel("correlation_coefficient", "field", "1", "copolar correlation coefficient", _radar_packing(1e-4, -1.0),
            (0.5, 1.05)),
)
# fmt: on
#: Every channel by name. ``field`` stands for radar moments other than reflectivity.
CHANNELS: dict[str, Channel] = {channel.name: channel for channel in _CHANNELS}


def channel_in(name: str, attributes: Mapping[str, Any], dtype: npt.DTypeLike) -> Channel:
    """Return the channel of a data variable of a scene or a store: one of the table, or one of kind
    ``other``.

    Parameters
    ----------
    name
        Name of the variable. A channel of kind ``other`` has the name of its source variable.
    attributes
        Of the variable. ``role="companion"`` marks kind ``other``, with the units, packing and valid range
        they state.
    dtype
        Dtype of the variable.

    Returns
    -------
    The channel.

    Raises
    ------
    SchemaError
        If the variable is not a channel.
    """
    if attributes.get("role") != OTHER_ATTRIBUTES["role"]:
        return channel_of(name)
    packing = Packing.from_attributes(attributes, dtype)
    bounds = (packing.valid_minimum, packing.valid_maximum)
    low, high = (math.nan if v is None else v * packing.scale_factor + packing.add_offset for v in bounds)
    return Channel(
        name=name,
        kind="other",
        units=str(attributes.get("units", "1")),
        long_name=str(attributes.get("long_name", name)),
        packing=packing,
        typical_range=(low, high),
        standard_name=attributes.get("standard_name"),
    )


def channel_of(label: str) -> Channel:
    """Return the channel that a variable or a label such as ``reflectivity@3.0km`` belongs to.

    Parameters
    ----------
    label
        Name of a variable, or label such as ``reflectivity@3.0km``.

    Returns
    -------
    The channel.

    Raises
    ------
    SchemaError
        If there is no such channel.
    """
    name = label.split("@", 1)[0]
    if name not in CHANNELS:
        raise SchemaError(f"unknown channel {name!r}; expected some of {sorted(CHANNELS)}")
    return CHANNELS[name]


def channel_label(variable: str, altitude_km: float | None = None) -> str:
    """Return the label of a variable at an altitude, such as ``reflectivity@3.0km``.

    Parameters
    ----------
    variable
        Name of the variable.
    altitude_km
        Altitude in km; None for a variable without altitudes.

    Returns
    -------
    The label; the name alone without an altitude.
    """
    return variable if altitude_km is None else f"{variable}@{float(altitude_km)}km"


#: Bins of a channel's training histogram, over its typical range.
HISTOGRAM_BINS = 64
#: Statistics of every channel, float32, in the channel's units (fractions: 1); echo pixels only where the
#: channel has echoes.
#: ``dead_lines`` counts rows and columns that repeat one value in a field that varies.
STATISTICS = ("valid_fraction", "mean", "std", "minimum", "maximum", "dead_lines")
#: Further statistics of channels with echoes. ``mean_linear`` of dBZ is the mean of linear Z, back in dBZ.
ECHO_STATISTICS = ("echo_fraction", "mean_linear")
#: Further statistics of rain: mean and standard deviation of log10 of the value in the channel's units.
LOG_STATISTICS = ("mean_log10", "std_log10")


def statistics_of(channel: Channel) -> tuple[str, ...]:
    """Return the names of the statistics that a store keeps of this channel.

    Channels of kind ``other`` have no ``dead_lines``: categories often repeat a value.

    Parameters
    ----------
    channel
        The channel.

    Returns
    -------
    Names of statistics.
    """
    if channel.kind == "other":
        return tuple(name for name in STATISTICS if name != "dead_lines")
    names = STATISTICS + ECHO_STATISTICS if channel.has_echo else STATISTICS
    return names + LOG_STATISTICS if channel.kind == "rain" else names


def statistic_units(channel: Channel, statistic: str) -> str:
    """Return the units of a statistic: those of the channel, and 1 for fractions, counts and logarithms.

    Parameters
    ----------
    channel
        The channel.
    statistic
        Name of the statistic.

    Returns
    -------
    Units.
    """
    pure = statistic.endswith(("_fraction", "_log10")) or statistic == "dead_lines"
    return "1" if pure else channel.units


class Flag(enum.IntFlag):
    """Bits of ``<channel>_flags``. Writing only sets them; which of them reject a patch is chosen when
    reading.
    """

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
    withdrawn = 32768


_REJECT_ALWAYS = (
    Flag.all_missing
    | Flag.channel_absent
    | Flag.non_finite
    | Flag.unreadable
    | Flag.constant
    | Flag.padding
    | Flag.low_coverage
    | Flag.withdrawn
)


def default_reject(kind: str) -> Flag:
    """Return the flags that exclude a patch of a channel of this kind from training.

    For kind ``other`` only the flags of patches without pixels exclude, and that of withdrawn sources, because
    a label may cover any part of a patch.

    Parameters
    ----------
    kind
        Kind of the channel: ``infrared``, ``visible``, ``radar``, ``rain`` or ``other``.

    Returns
    -------
    The flags.
    """
    if kind == "other":
        return Flag.channel_absent | Flag.unreadable | Flag.padding | Flag.withdrawn
    return _REJECT_ALWAYS | Flag.night if kind == "visible" else _REJECT_ALWAYS


def reject_mask(reject: int | Flag | Iterable[str] | None, kind: str) -> int:
    """Return the rejecting bits as an integer: ``None`` for the default, names, or a mask as it is.

    Parameters
    ----------
    reject
        Names of flags, or a mask; None for the default of the kind.
    kind
        Kind of the channel: ``infrared``, ``visible``, ``radar``, ``rain`` or ``other``.

    Returns
    -------
    The mask.

    Raises
    ------
    SchemaError
        If a name is not a flag.
    """
    if reject is None:
        return int(default_reject(kind))
    if isinstance(reject, int):
        return int(reject)
    names = set(reject)
    if unknown := sorted(names - set(Flag.__members__)):
        raise SchemaError(f"reject: unknown flag {unknown[0]!r}; expected some of {list(Flag.__members__)}")
    return sum(int(Flag[name]) for name in names)


def flag_attributes() -> dict[str, Any]:
    """Return the CF attributes of a flag variable (dtype uint16).

    Returns
    -------
    Attributes of a variable of dtype uint16.
    """
    return {
        "standard_name": "quality_flag",
        "units": "1",
        "flag_masks": [int(f) for f in Flag],
        "flag_meanings": " ".join(f.name for f in Flag if f.name),
    }


Placement = Literal["scene", "tiles", "cover", "random", "center", "list"]


@dataclass(frozen=True, kw_only=True)
class TileSpec:
    """How a scene becomes crops.

    ``crop`` is the (height, width) of a window in pixels; ``None`` takes the whole scene, padded to whole
    patches. ``placement`` decides where windows of that size are; ``seed`` decides the random ones.
    """

    crop: tuple[int, int] | None = None
    patch: int = PATCH_SIZE
    placement: Placement = "scene"
    seed: int = 0
    crops_per_scene: int = 1
    offsets: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", tuple((int(y), int(x)) for y, x in self.offsets))
        if self.patch < 1:
            raise SchemaError(f"patch: expected a positive number of pixels, got {self.patch}")
        if self.placement not in get_args(Placement):
            raise SchemaError(f"placement: got {self.placement!r}; expected one of {get_args(Placement)}")
        is_list, is_random = self.placement == "list", self.placement == "random"
        is_once = len(set(self.offsets)) == len(self.offsets)
        if bool(self.offsets) != is_list or not is_once or any(min(offset) < 0 for offset in self.offsets):
            raise SchemaError(
                f"offsets: got {list(self.offsets)} with placement={self.placement!r}; expected some (y, x), each "
                "once and none negative, with placement='list', and none otherwise"
            )
        if self.crops_per_scene < 1 or (self.crops_per_scene > 1 and not is_random):
            raise SchemaError(
                f"crops_per_scene: got {self.crops_per_scene} with placement={self.placement!r}; expected at least 1, "
                "and 1 unless placement='random'"
            )
        if (self.crop is None) != (self.placement == "scene"):
            raise SchemaError(
                f"crop={self.crop} with placement={self.placement!r}: a window needs both a size and a placement "
                "other than 'scene'. Pass both `crop` and `placement`, or neither."
            )
        if self.crop is not None:
            object.__setattr__(self, "crop", (int(self.crop[0]), int(self.crop[1])))
            if any(edge < self.patch or edge % self.patch for edge in self.crop):
                raise SchemaError(
                    f"crop {self.crop} is not whole patches of {self.patch} px; pass a multiple"
                )


@dataclass(frozen=True, kw_only=True)
class QualitySpec:
    """Thresholds of the flags.

    ``max_deviation_factor`` (k of `local_outlier`) and ``global_mean_deviation_factor`` (k of
    `global_outlier`) count standard deviations. ``rule="predecessor"`` applies the batch form of the old
    pipeline's formula: unbiased deviation over all valid pixels, mean and deviation of patch means.
    """

    max_deviation_factor: float = 10.0
    global_mean_deviation_factor: float = 10.0
    rule: Literal["echo", "predecessor"] = "echo"
    low_coverage: float = 0.5
    night_solar_zenith: float = 85.0
    low_sun_solar_zenith: float = 75.0
    limb_satellite_zenith: float = 70.0

    def __post_init__(self) -> None:
        if self.rule not in ("echo", "predecessor"):
            raise SchemaError(f"rule: got {self.rule!r}; expected echo or predecessor")
        for name in ("max_deviation_factor", "global_mean_deviation_factor"):
            if not getattr(self, name) > 0:
                raise SchemaError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.low_coverage <= 1:
            raise SchemaError(f"low_coverage: expected a share from 0 to 1, got {self.low_coverage}")


@dataclass(frozen=True, kw_only=True)
class RadarSpec:
    """How radar volumes become channels.

    ``qc`` chooses the quality control of GridRad volumes: ``published`` bit for bit, ``fixed`` without the
    errors of the published code (`gridrad_cube.quality.remove_clutter` lists them), or none. ``qc_constants``
    are (name, value) of
    `gridrad_cube.quality.RadarQualitySpec` that differ from the published ones.
    """

    altitudes_km: tuple[float, ...] = ()
    echo_top_dbz: float = 18.5
    qc: Literal["fixed", "published", "none"] = "fixed"
    qc_constants: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "qc_constants", tuple(sorted((str(k), v) for k, v in self.qc_constants)))
        object.__setattr__(self, "altitudes_km", tuple(float(a) for a in self.altitudes_km))
        if self.qc not in ("fixed", "published", "none"):
            raise SchemaError(f"qc: got {self.qc!r}; expected fixed, published or none")
        if self.qc_constants and self.qc == "none":
            raise SchemaError(f"qc_constants: got {dict(self.qc_constants)} with qc='none'; expected none")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the content of a store; saved in it and compared on resume.

    Without ``channels``, a store has the default channels of its scenes. A name that is not in `CHANNELS` is
    a variable of the source on the same pixels, which becomes a channel of kind ``other``. ``variables`` maps
    a channel to the variable and units of the source if a CF file does not state them:
    ``{"ir_brightness_temperature": ("Infrared", "degC")}``. ``mixed_lattices`` allows scenes of GridRad v3.1
    and v4, whose pixels do not align, in one store.
    """

    format: str = "auto"
    channels: tuple[str, ...] = ()
    tile: TileSpec = TileSpec()
    quality: QualitySpec = QualitySpec()
    radar: RadarSpec = RadarSpec()
    codec: Literal["fast", "small", "raw"] = "fast"
    variables: tuple[tuple[str, str, str | None], ...] = ()
    mixed_lattices: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a dict of JSON types, the inverse of `from_dict`.

        Returns
        -------
        The store format lists channels of kind ``other`` under ``companions``.
        """
        known = tuple(label for label in self.channels if label.split("@")[0] in CHANNELS)
        data = dataclasses.asdict(dataclasses.replace(self, channels=known))
        mixed = data.pop("mixed_lattices")
        others = tuple(label for label in self.channels if label not in known)
        return data | {"companions": others, "mixed_lattices": mixed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return a recipe from a dict that `to_dict` made.

        Parameters
        ----------
        data
            The dict.

        Returns
        -------
        The recipe.

        Raises
        ------
        SchemaError
            If a key is unknown.
        """
        nested: dict[str, type] = {"tile": TileSpec, "quality": QualitySpec, "radar": RadarSpec}
        values = {
            key: build_spec(nested[key], value) if key in nested else value for key, value in data.items()
        }
        values["channels"] = (*values.get("channels", ()), *values.pop("companions", ()))
        values["variables"] = tuple(tuple(v) for v in values.get("variables", ()))
        return build_spec(cls, values)


def build_spec(cls: type[Any], data: Mapping[str, Any]) -> Any:
    """Return an instance of a spec from a mapping.

    Parameters
    ----------
    data
        Values by name.
    cls
        Class of the spec.

    Returns
    -------
    The instance.

    Raises
    ------
    SchemaError
        If a key is unknown.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise SchemaError(f"{cls.__name__}: unknown {unknown}; expected some of {sorted(known)}")
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in data.items()})
