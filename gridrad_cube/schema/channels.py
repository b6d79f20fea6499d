"""The channels: units, names, and how float sources of them are packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema.errors import SchemaError
from gridrad_cube.schema.packing import Packing

Kind = Literal["infrared", "visible", "radar", "rain", "field", "companion"]
#: Attribute of a data variable that is carried beside the channels, and kept out of training unless asked for.
COMPANION_ROLE = {"role": "companion"}


def _radar_packing(step: float, offset: float) -> Packing:
    # Codes 1 to 3 decode to about `offset`: far below any echo, so plain xarray tells them apart.
    return Packing(
        scale_factor=step,
        add_offset=offset - step,
        fill_value=0,
        no_echo=1,
        low_confidence=2,
        clutter=3,
        out_of_range=4,
        non_finite=5,
        echo_minimum=16,
    )


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One physical field: its units and how float sources of it are packed.

    ``typical_range`` in ``units`` is what histograms and colour scales span; values outside are data too.
    """

    name: str
    kind: Kind
    units: str
    long_name: str
    packing: Packing
    typical_range: tuple[float, float]
    standard_name: str | None = None

    @property
    def has_echo(self) -> bool:
        """Whether statistics count echo pixels only (radar and rain)."""
        return self.packing.echo_minimum is not None

    def attributes(self) -> dict[str, Any]:
        """CF attributes of the field, packing apart."""
        out = {"units": self.units, "long_name": self.long_name}
        if self.standard_name:
            out["standard_name"] = self.standard_name
        return out


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
_CHANNELS: tuple[tuple[str, Kind, str, str, Packing, tuple[float, float], str | None], ...] = (
    ("ir_brightness_temperature", "infrared", "K", "infrared brightness temperature", _KELVIN, (190.0, 320.0),
     "toa_brightness_temperature"),
    ("visible_reflectance", "visible", "1", "visible reflectance", _FRACTION, (0.0, 1.2),
     "toa_bidirectional_reflectance"),
    ("reflectivity", "radar", "dBZ", "radar reflectivity", _DBZ, (-10.0, 75.0), _Z),
    ("reflectivity_column_maximum", "radar", "dBZ", "column maximum reflectivity", _DBZ, (-10.0, 75.0), _Z),
    ("echo_top_height", "radar", "km", "echo-top height above mean sea level", _DBZ, (0.0, 22.0), None),
    ("precipitation_rate", "rain", "mm h-1", "precipitation rate", _RAIN, (0.0, 150.0), "lwe_precipitation_rate"),
    ("spectrum_width", "field", "m s-1", "Doppler velocity spectrum width", _DBZ, (0.0, 20.0), None),
    ("azimuthal_shear", "field", "s-1", "azimuthal shear", _SHEAR, (-0.02, 0.02), None),
    ("divergence", "field", "s-1", "radial divergence", _SHEAR, (-0.02, 0.02), None),
    ("differential_reflectivity", "field", "dB", "differential reflectivity", _DBZ, (-4.0, 8.0), None),
    ("specific_differential_phase", "field", "degree km-1", "specific differential phase", _DBZ, (-2.0, 10.0), None),
    ("correlation_coefficient", "field", "1", "copolar correlation coefficient", _radar_packing(1e-4, -1.0),
     (0.5, 1.05), None),
)
# fmt: on
#: Every channel by name. ``field`` stands for radar moments other than reflectivity.
CHANNELS: dict[str, Channel] = {
    name: Channel(
        name=name,
        kind=kind,
        units=units,
        long_name=long_name,
        packing=packing,
        typical_range=typical_range,
        standard_name=standard_name,
    )
    for name, kind, units, long_name, packing, typical_range, standard_name in _CHANNELS
}


def channel_in(name: str, attributes: Mapping[str, Any], dtype: npt.DTypeLike) -> Channel:
    """The channel that a data variable of a scene or a store is: of the table, or a companion field.

    Parameters
    ----------
    name
        Of the variable; a companion keeps its source's.
    attributes
        Of the variable. ``role="companion"`` makes it one, with the units, packing and valid range they state.

    Raises
    ------
    SchemaError
        If it is neither.
    """
    if attributes.get("role") != COMPANION_ROLE["role"]:
        return channel_of(name)
    packing = Packing.from_attributes(attributes, dtype)
    low, high = packing.valid_minimum, packing.valid_maximum
    span = [np.nan if v is None else v * packing.scale_factor + packing.add_offset for v in (low, high)]
    return Channel(
        name=name,
        kind="companion",
        units=str(attributes.get("units", "1")),
        long_name=str(attributes.get("long_name", name)),
        packing=packing,
        typical_range=(float(span[0]), float(span[1])),
        standard_name=attributes.get("standard_name"),
    )


def channel_of(label: str) -> Channel:
    """The channel that a variable or a label such as ``reflectivity@3.0km`` belongs to.

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
    """Label of a variable at an altitude: ``reflectivity@3.0km``; the name alone where it has none."""
    return variable if altitude_km is None else f"{variable}@{float(altitude_km)}km"
