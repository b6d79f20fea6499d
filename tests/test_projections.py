"""Grids that files give by a projection, in the layouts of the products that have them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import reader_files as files

from gridrad_cube import readers
from gridrad_cube.schema import Packing, SchemaError

TIME: dict[str, Any] = {"time": ((), 0.0, {"units": "seconds since 2019-06-10", "standard_name": "time"})}
LAMBERT = {
    "grid_mapping_name": "lambert_conformal_conic", "standard_parallel": [38.5, 38.5], "earth_radius": 6371229.0,
    "longitude_of_central_meridian": 262.5, "latitude_of_projection_origin": 38.5,
}  # fmt: skip
POLAR = {
    "grid_mapping_name": "polar_stereographic", "straight_vertical_longitude_from_pole": 10.0,
    "standard_parallel": 60.0, "latitude_of_projection_origin": 90.0, "earth_radius": 6370040.0,
}  # fmt: skip
#: The Bureau of Meteorology's rain fields.
ALBERS = {
    "grid_mapping_name": "albers_conical_equal_area", "standard_parallel": [-18.0, -36.0], "false_easting": 0.0,
    "longitude_of_central_meridian": 144.75, "latitude_of_projection_origin": -37.85, "false_northing": 0.0,
    "semi_major_axis": 6378137.0, "inverse_flattening": 298.257222101,
}  # fmt: skip
#: ``goes_imager_projection`` of a GOES-East file.
ABI = {
    "long_name": "GOES-R ABI fixed grid projection", "grid_mapping_name": "geostationary",
    "perspective_point_height": 35786023.0, "semi_major_axis": 6378137.0, "semi_minor_axis": 6356752.31414,
    "inverse_flattening": 298.2572221, "latitude_of_projection_origin": 0.0, "longitude_of_projection_origin": -75.0,
    "sweep_angle_axis": "x",
}  # fmt: skip


def write_projected(
    path: Path,
    mapping: dict[str, Any],
    y: np.ndarray,
    x: np.ndarray,
    *,
    units: str = "m",
    field: np.ndarray | None = None,
    named: str = "crs",
    coordinate: str = "projection_{}_coordinate",
) -> Path:
    """Write rain on projection coordinates; ``named`` is the field's attribute grid_mapping, empty for none."""
    values = np.ones((y.size, x.size), "f4") if field is None else field
    attributes = {"units": "mm h-1"} | ({"grid_mapping": named} if named else {})
    coordinates = TIME | {
        name: ((name,), axis, {"units": units, "standard_name": coordinate.format(name)})
        for name, axis in (("y", y), ("x", x))
    }
    fields = {"precipitation_rate": (("y", "x"), values, attributes), "crs": ((), np.int32(0), mapping)}
    return files.write_cf(path, fields, coordinates)


def write_abi(path: Path, rows: slice = slice(None), columns: slice = slice(None)) -> Path:
    """Write a full disk of 108 x 108 pixels as an ABI L2 file packs it, or a part of it."""
    x_codes, y_codes = (np.arange(108, dtype="i2")[part] for part in (columns, rows))
    codes = np.full((y_codes.size, x_codes.size), 2000, "i2")
    step = 0.0028
    angle = {"units": "rad", "scale_factor": np.float32(step), "add_offset": np.float32(-53.5 * step)}
    down = angle | {"scale_factor": np.float32(-step), "add_offset": np.float32(53.5 * step)}
    packed = {
        "_FillValue": np.int16(-1), "_Unsigned": "true", "valid_range": np.array([0, 4095], "i2"), "units": "K",
        "scale_factor": np.float32(0.06145332), "add_offset": np.float32(89.62),
        "grid_mapping": "goes_imager_projection",
        "standard_name": "toa_brightness_temperature", "coordinates": "band_id t y x", "cell_methods": "t: point",
    }  # fmt: skip
    subpoint = {"standard_name": "latitude", "units": "degrees_north", "_FillValue": np.float32(-999)}
    coordinates = {
        "y": (("y",), y_codes, down | {"standard_name": "projection_y_coordinate", "axis": "Y"}),
        "x": (("x",), x_codes, angle | {"standard_name": "projection_x_coordinate", "axis": "X"}),
        "t": ((), 645494415.0, {"standard_name": "time", "units": "seconds since 2000-01-01 12:00:00"}),
        "nominal_satellite_subpoint_lat": ((), np.float32(0), subpoint),
    }
    fields = {
        "CMI": (("y", "x"), codes, packed),
        "goes_imager_projection": ((), np.int32(0), ABI),
    }
    return files.write_cf(path, fields, coordinates, title="ABI L2 Cloud and Moisture Imagery")


def navigate(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude in degrees of ABI scan angles in radians.

    GOES-R Product Definition and User's Guide, volume 5 (Level 2+ products), section 4.2.8.1.
    """
    equator, pole, lon_0 = ABI["semi_major_axis"], ABI["semi_minor_axis"], np.deg2rad(-75.0)
    distance = ABI["perspective_point_height"] + equator
    a = np.sin(x) ** 2 + np.cos(x) ** 2 * (np.cos(y) ** 2 + equator**2 / pole**2 * np.sin(y) ** 2)
    b, c = -2 * distance * np.cos(x) * np.cos(y), distance**2 - equator**2
    with np.errstate(invalid="ignore"):
        r_s = (-b - np.sqrt(b**2 - 4 * a * c)) / (2 * a)
    s_x, s_y, s_z = r_s * np.cos(x) * np.cos(y), -r_s * np.sin(x), r_s * np.cos(x) * np.sin(y)
    latitude = np.arctan(equator**2 / pole**2 * s_z / np.hypot(distance - s_x, s_y))
    return np.rad2deg(latitude), np.rad2deg(lon_0 - np.arctan(s_y / (distance - s_x)))


def test_abi_positions_are_those_of_the_published_formula(tmp_path):
    # The example of the guide: these two angles are 33.846162 N, 84.690932 W.
    example = navigate(np.array(0.095340), np.array(-0.024052))
    np.testing.assert_allclose(example, (33.846162, -84.690932), atol=1e-6)

    scene = readers.read_scene(write_abi(tmp_path / "abi.nc"))
    x = (np.arange(108) - 53.5) * 0.0028  # float32 attributes stand for their shortest decimals
    latitude, longitude = navigate(*np.meshgrid(-x, x, indexing="ij"))
    np.testing.assert_array_equal(np.isnan(scene.latitude), np.isnan(latitude))
    assert 0.2 < np.isnan(latitude).mean() < 0.3
    np.testing.assert_allclose(scene.latitude, latitude, atol=1e-7)
    np.testing.assert_allclose(scene.longitude, longitude, atol=1e-7)


def test_pixels_off_the_disk_are_not_observed(tmp_path):
    scene = readers.read_scene(write_abi(tmp_path / "abi.nc"))
    field = scene.ir_brightness_temperature
    packing = Packing.from_attributes(field.attrs, field.dtype)
    np.testing.assert_array_equal(packing.missing(field.values), np.isnan(scene.latitude))
    assert scene.attrs["satellite_longitude"] == -75.0
    assert scene.time.values == np.datetime64("2020-06-15T12:00:15")

    off = write_abi(tmp_path / "corner.nc", slice(0, 8), slice(0, 8))
    with pytest.raises(SchemaError, match="puts no pixel on the Earth"):
        readers.read_scene(off)


@pytest.mark.parametrize(
    ("mapping", "units", "step", "place"),
    [
        (LAMBERT, "m", 3000.0, (38.5, -97.5)),
        (LAMBERT, "km", 3.0, (38.5, -97.5)),
        (POLAR, "m", 1000.0, (90.0, None)),
        (ALBERS, "km", 1.0, (-37.85, 144.75)),
    ],
)
def test_origin_and_spacing_of_plane_projections(tmp_path, mapping, units, step, place):
    from gridrad_cube.geometry import great_circle_km

    axis = np.arange(-10, 11) * step
    path = write_projected(tmp_path / "a.nc", mapping, axis, axis, units=units)
    scene = readers.read_scene(path)
    assert scene.latitude.dims == ("y", "x")
    assert scene.latitude[10, 10] == pytest.approx(place[0], abs=1e-6)
    if place[1] is not None:
        assert scene.longitude[10, 10] == pytest.approx(place[1], abs=1e-6)
    lat, lon = scene.latitude.values, scene.longitude.values
    apart = great_circle_km(lat[:-1], lon[:-1], lat[1:], lon[1:])
    np.testing.assert_allclose(apart, step / (1000 if units == "m" else 1), rtol=0.08)


def test_rotated_pole(tmp_path):
    rotated = {
        "grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 39.25,
        "grid_north_pole_longitude": -162.0, "earth_radius": 6371229.0,
    }  # fmt: skip
    axis = np.linspace(-1, 1, 21)
    path = write_projected(tmp_path / "a.nc", rotated, axis, axis, units="degrees", coordinate="grid_{}")
    with netCDF4.Dataset(path, "a") as f:
        f["y"].standard_name, f["x"].standard_name = "grid_latitude", "grid_longitude"
    scene = readers.read_scene(path)
    assert scene.latitude[10, 10] == pytest.approx(90 - 39.25)
    assert scene.longitude[10, 10] == pytest.approx(180 - 162)
    assert (scene.latitude[-1] > scene.latitude[0]).all()


def test_meters_and_radians_of_a_geostationary_projection_agree(tmp_path):
    angle = np.linspace(-0.05, 0.05, 30)
    radians = write_projected(tmp_path / "a.nc", ABI, angle, angle, units="rad")
    height = ABI["perspective_point_height"]
    meters = write_projected(tmp_path / "b.nc", ABI, angle * height, angle * height)
    micro = write_projected(
        tmp_path / "c.nc", ABI, angle * 1e6, angle * 1e6, units="microradian",
        coordinate="projection_{}_angular_coordinate",
    )  # fmt: skip
    first, *others = (readers.inspect(path) for path in (radians, meters, micro))
    for other in others:
        np.testing.assert_allclose(other.latitude, first.latitude, atol=1e-9)
        np.testing.assert_allclose(other.longitude, first.longitude, atol=1e-9)


def test_grid_mapping_by_name_by_wkt_and_alone_in_the_file(tmp_path):
    from pyproj import CRS

    axis = np.arange(-10, 11) * 3000.0
    wkt = CRS.from_cf(LAMBERT).to_wkt()
    mappings = [(LAMBERT, "crs"), (LAMBERT, "crs: x y"), (LAMBERT, ""), ({"crs_wkt": wkt}, "crs")]
    mappings.append(({"spatial_ref": wkt}, "crs"))
    scenes = [
        readers.inspect(write_projected(tmp_path / f"{i}.nc", mapping, axis, axis, named=named))
        for i, (mapping, named) in enumerate(mappings)
    ]
    assert len({scene.grid_id for scene in scenes}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_mapping_name": "flat_earth"}, "pyproj cannot read this grid mapping"),
        (
            {"grid_mapping_name": "latitude_longitude"},
            "Expected one variable with the attribute grid_mapping_name",
        ),
        ({"units": "furlongs"}, "units 'furlongs' of a coordinate of the projection.*expected m or km"),
        ({"units": "rad"}, "units 'rad' of a coordinate of the projection.*expected m or km"),
    ],
)
def test_what_cannot_be_projected_is_refused(tmp_path, change, message):
    units = change.pop("units", "m")
    axis = np.arange(-10, 11) * 3000.0
    path = write_projected(tmp_path / "a.nc", LAMBERT | change, axis, axis, units=units)
    with pytest.raises(SchemaError, match=message):
        readers.read_scene(path)


def test_columns_may_come_before_rows(tmp_path):
    y, x = np.arange(20) * 3000.0, np.arange(30) * 3000.0
    values = np.arange(600.0, dtype="f4").reshape(20, 30)
    rows_first = write_projected(tmp_path / "a.nc", LAMBERT, y, x, field=values)
    scene = readers.read_scene(rows_first)
    coordinates = TIME | {
        name: ((name,), axis, {"units": "m", "axis": name.upper()}) for name, axis in (("y", y), ("x", x))
    }
    fields = {
        "precipitation_rate": (("x", "y"), values.T, {"units": "mm h-1"}),
        "crs": ((), np.int32(0), LAMBERT),
    }
    other = readers.read_scene(files.write_cf(tmp_path / "b.nc", fields, coordinates))
    np.testing.assert_array_equal(scene.precipitation_rate, other.precipitation_rate)
    np.testing.assert_array_equal(scene.latitude, other.latitude)


def test_pyart_grid_with_the_position_of_every_point(tmp_path):
    lat, lon = np.meshgrid(np.linspace(-13, -12, 8), np.linspace(130, 131, 9), indexing="ij")
    box = ("z", "y", "x")
    coordinates = {
        "time": (("time",), [0.0], {"units": "seconds since 2006-01-20T00:50:08Z", "standard_name": "time"}),
        "z": (("z",), [500.0, 1000.0, 1500.0], {"units": "m", "axis": "Z", "standard_name": "projection_z_coordinate"}),
        "y": (("y",), np.arange(8) * 1000.0, {"units": "m", "axis": "Y"}),
        "x": (("x",), np.arange(9) * 1000.0, {"units": "m", "axis": "X"}),
        "origin_latitude": (("time",), [-12.5], {"units": "degrees_north", "standard_name": "latitude"}),
        "origin_longitude": (("time",), [130.5], {"units": "degrees_east", "standard_name": "longitude"}),
        "point_latitude": (box, np.stack([lat] * 3), {"units": "degrees_north"}),
        "point_longitude": (box, np.stack([lon] * 3), {"units": "degrees_east"}),
    }  # fmt: skip
    field = {"reflectivity": (("time", *box), np.full((1, 3, 8, 9), 20, "f4"), {"units": "dBZ"})}
    scene = readers.read_scene(files.write_cf(tmp_path / "a.nc", field, coordinates))
    np.testing.assert_array_equal(scene.latitude, lat)
    np.testing.assert_array_equal(scene.longitude, lon)
    assert scene.reflectivity.shape == (3, 8, 9)

    coordinates["point_latitude"] = (box, np.stack([lat, lat, lat + 1]), {"units": "degrees_north"})
    moving = files.write_cf(tmp_path / "b.nc", field, coordinates)
    with pytest.raises(SchemaError, match=r"changes along 'z'; expected a grid that does not move"):
        readers.read_scene(moving)


def test_wrf_output(tmp_path):
    lat, lon = np.meshgrid(
        np.linspace(40, 41, 8, dtype="f4"), np.linspace(-98, -97, 9, dtype="f4"), indexing="ij"
    )
    dims = ("Time", "south_north", "west_east")
    where = {"coordinates": "XLONG XLAT XTIME", "description": "MAX REFLECTIVITY", "units": "dBZ"}
    fields = {
        "XLAT": (dims, lat[None], {"units": "degree_north", "description": "LATITUDE, SOUTH IS NEGATIVE"}),
        "XLONG": (dims, lon[None], {"units": "degree_east"}),
        "XLAT_U": (("Time", "south_north", "west_east_stag"), np.zeros((1, 8, 10), "f4"), {"units": "degree_north"}),
        "XLONG_U": (("Time", "south_north", "west_east_stag"), np.zeros((1, 8, 10), "f4"), {"units": "degree_east"}),
        "REFD_COM": (dims, np.full((1, 8, 9), 20, "f4"), where),
    }  # fmt: skip
    path = files.write_cf(tmp_path / "wrfout_d01_20190610_1200.nc", fields, {})
    scene = readers.read_scene(path, variables=(("reflectivity_column_maximum", "REFD_COM", None),))
    np.testing.assert_array_equal(scene.latitude, lat)
    np.testing.assert_array_equal(scene.longitude, lon)


@pytest.mark.parametrize("name", ["dwd_yw_20170816", "fmi_20170509", "knmi_20100826", "mch_20170131"])
def test_real_radar_composites_lie_where_their_own_latitudes_say(real_data, tmp_path, name):
    path = tmp_path / f"{name[:-9]}_20170816_0000.nc"
    with netCDF4.Dataset(real_data / "radar" / f"{name}.nc") as old:
        mapping = dict(old["crs"].__dict__)
        y, x = old["y"][:].data, old["x"][:].data
        units = old["x"].units
        latitude, longitude = old["latitude"][:], old["longitude"][:]
    scene = readers.read_scene(write_projected(path, mapping, y, x, units=units))
    assert np.abs(scene.latitude.values - latitude).max() < 2e-4
    assert np.abs(scene.longitude.values - longitude).max() < 2e-4


def test_real_pyart_grid_lies_around_its_origin(real_data):
    variables = (("reflectivity", "DT", None),)
    path = real_data / "radar_volume_cpol_20060120T0050Z.nc"
    header = readers.inspect(path, variables=variables)
    with netCDF4.Dataset(path) as f:
        origin = int(np.abs(f["y"][:]).argmin()), int(np.abs(f["x"][:]).argmin())
        assert header.latitude[origin] == pytest.approx(float(f["origin_latitude"][0]), abs=1e-6)
        assert header.longitude[origin] == pytest.approx(float(f["origin_longitude"][0]), abs=1e-6)


def test_pyproj_is_imported_for_projected_files_alone(tmp_path):
    path = files.write_cf(tmp_path / "a_20190610_0000.nc", {"x1": (("lat", "lon"), np.ones((6, 5)), {})})
    code = (
        "import sys; from gridrad_cube import readers; "
        f"readers.read_scene({str(path)!r}, channels=('x1',)); print('pyproj' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
