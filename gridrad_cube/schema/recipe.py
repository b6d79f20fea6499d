"""The specs that decide the content of a store: tiles, quality, radar, and the recipe that holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from gridrad_cube.schema.constants import PATCH_SIZE
from gridrad_cube.schema.errors import SchemaError

Placement = Literal["scene", "tiles", "random", "center", "list"]


@dataclass(frozen=True, kw_only=True)
class TileSpec:
    """How a scene becomes crops.

    ``crop`` is the window's (height, width) in pixels; ``None`` takes the whole scene, padded to whole
    patches. ``placement`` says where windows of a given size lie; ``seed`` draws the random ones.
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
            raise SchemaError(
                f"placement: got {self.placement!r}; expected one of {list(get_args(Placement))}"
            )
        if bool(self.offsets) != (self.placement == "list"):
            raise SchemaError(
                f"offsets: got {list(self.offsets)} with placement={self.placement!r}; expected some (y, x) with "
                "placement='list', and none otherwise"
            )
        if len(set(self.offsets)) < len(self.offsets) or any(min(offset) < 0 for offset in self.offsets):
            raise SchemaError(f"offsets: got {list(self.offsets)}; expected each once, none negative")
        if self.crops_per_scene < 1 or (self.crops_per_scene > 1 and self.placement != "random"):
            raise SchemaError(
                f"crops_per_scene: got {self.crops_per_scene} with placement={self.placement!r}; expected at least 1, "
                "and 1 unless placement='random'"
            )
        if (self.crop is None) != (self.placement == "scene"):
            raise SchemaError(
                f"crop={self.crop} with placement={self.placement!r}: a window needs both a size and a placement "
                "other than 'scene'. Pass --crop 2048 --placement tiles, or neither."
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

    ``qc`` chooses the quality control of GridRad volumes: ``published`` bit for bit, ``fixed`` without its slips
    (`gridrad_cube.quality.remove_clutter` lists them), or none. ``qc_constants`` are (name, value) of
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
            raise SchemaError(
                f"qc_constants: got {dict(self.qc_constants)} with qc='none'; expected none of them"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the content of a store; saved in it and compared on resume.

    ``channels`` empty takes what the first scene offers by default. ``variables`` maps a channel to the
    source's variable and units where a CF file does not say them: ``{"ir_brightness_temperature":
    ("Infrared", "degC")}``. ``companions`` are further variables of the source, by its own names, carried beside
    the channels. ``mixed_lattices`` lets scenes of GridRad v3.1 and v4 into one store, whose pixels do not align.
    """

    format: str = "auto"
    channels: tuple[str, ...] = ()
    tile: TileSpec = TileSpec()
    quality: QualitySpec = QualitySpec()
    radar: RadarSpec = RadarSpec()
    codec: Literal["fast", "small", "raw"] = "fast"
    variables: tuple[tuple[str, str, str | None], ...] = ()
    companions: tuple[str, ...] = ()
    mixed_lattices: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON types, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a recipe; unknown keys are refused by name."""
        nested: dict[str, type] = {"tile": TileSpec, "quality": QualitySpec, "radar": RadarSpec}
        values = {
            key: build_spec(nested[key], value) if key in nested else value for key, value in data.items()
        }
        for key in ("channels", "variables", "companions"):
            if key in values:
                values[key] = tuple(tuple(v) if isinstance(v, list) else v for v in values[key])
        return build_spec(cls, values)


def build_spec(cls: type[Any], data: Mapping[str, Any]) -> Any:
    """Make a spec from a mapping, refusing keys that it does not have."""
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise SchemaError(f"{cls.__name__}: unknown {unknown}; expected some of {sorted(known)}")
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in data.items()})
