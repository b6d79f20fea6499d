"""Synthetic source files: faithful layouts, weather that continues from scene to scene, all from one seed."""

from __future__ import annotations

import hashlib
import re

import netCDF4
import numpy as np
import pytest

from gridrad_cube import geometry
from gridrad_cube.schema import SchemaError
from gridrad_cube.synthetic import FORMATS, plant_table, write_scenes
from gridrad_cube.synthetic.radar import RadarNetwork, render_radar
from gridrad_cube.synthetic.satellite import render_satellite
from gridrad_cube.synthetic.scenes import _make_axes
from gridrad_cube.synthetic.storms import Weather, seconds_of

NOON = np.datetime64("2021-07-05T18:00:00", "s")
RADAR_TIME = np.datetime64("2011-04-27T20:00:00", "s")

# The layouts as the archives have them, V4.2 as a real file; "..." stands for a text that differs or is not known.
LARC_GOES = """
dimensions: time = 1 ; nlines = 2240 ; npixels = 2856 ;
variables:
  double time(time) ; time:date_time_stamp = "..." ; time:units = "days since 1858-11-17T00:00:00.000" ;
    time:long_name = "Modified Julian Day of the Nominal Satellite Image Timestamp" ;
    time:definition = "http://tycho.usno.navy.mil/mjd.html" ;
    time:comments = "MJD equals 51544.0 at Jan/01/2000 00:00" ;
  float latitude(nlines) ;   latitude:long_name = "Latitude" ;   latitude:scale_factor = 57.29578f ;
    latitude:_FillValue = -999.f ;  latitude:units = "degrees_north" ;
  float longitude(npixels) ; longitude:long_name = "Longitude" ; longitude:scale_factor = 57.29578f ;
    longitude:_FillValue = -999.f ; longitude:units = "degrees_east" ;
  double scan_time(nlines) ; scan_time:long_name = "Observation Time (MJD) for Current Line" ;
    scan_time:units = "days since 1858-11-17T00:00:00.000" ;
  ushort ir_brightness_temperature(time, nlines, npixels) ;
    ir_brightness_temperature:long_name = "IR Brightness Temperature Image" ;
    ir_brightness_temperature:valid_range = 15000US, 35000US ; ir_brightness_temperature:units = "degrees_Kelvin" ;
    ir_brightness_temperature:scale_factor = 0.01f ; ir_brightness_temperature:_FillValue = 65535US ;
    ir_brightness_temperature:coordinates = "longitude latitude time" ;
  ushort ot_id_number(time, nlines, npixels) ;
    ot_id_number:long_name = "IR Overshooting Top Identification Number" ; ot_id_number:valid_range = 1US, 9999US ;
    ot_id_number:units = "unitless" ; ot_id_number:_FillValue = 0US ;
    ot_id_number:coordinates = "longitude latitude time" ;
  ushort visible_reflectance(time, nlines, npixels) ; visible_reflectance:units = "unitless" ;
    visible_reflectance:scale_factor = 0.0001f ; visible_reflectance:_FillValue = 65535US ;
    visible_reflectance:coordinates = "longitude latitude time" ;
"""
GRIDRAD_V3_1 = """
dimensions: Longitude = 2301 ; Latitude = 1201 ; Altitude = 24 ; time = 1 ; Index = 4 ; File = 2 ; FileRef = 32 ;
variables:
  float  Longitude(Longitude) ; Longitude:long_name = "Longitude" ; Longitude:units = "degrees_east" ;
    Longitude:delta = 0.02f ;
  float  Latitude(Latitude)   ; Latitude:long_name = "Latitude" ;   Latitude:units = "degrees_north" ;
    Latitude:delta = 0.02f ;
  float  Altitude(Altitude)   ; Altitude:long_name = "Altitude" ;   Altitude:units = "km" ;  Altitude:delta = 1.f ;
  double time(time) ;  time:long_name = "Time" ;  time:units = "seconds since 2001-01-01 00:00:00" ;
  byte   Nradobs(Altitude, Latitude, Longitude)  ; Nradobs:long_name = "Number of radar observations" ;
    Nradobs:units = "1" ;
  byte   Nradecho(Altitude, Latitude, Longitude) ; Nradecho:long_name = "Number of radar echoes" ;
    Nradecho:units = "1" ;
  int    index(Index)         ; index:long_name = "Flat index into (Altitude, Latitude, Longitude)" ;
  float  Reflectivity(Index)  ; Reflectivity:long_name = "Radar reflectivity" ; Reflectivity:units = "dBZ" ;
    Reflectivity:missing_value = NaNf ;
  float  wReflectivity(Index) ; wReflectivity:long_name = "Reflectivity bin weight" ; wReflectivity:units = "1" ;
    wReflectivity:missing_value = 0.f ;
  char   files_merged(File, FileRef) ;
:Analysis_time = "..." ; :Analysis_time_window = "..." ; :File_creation_date = "..." ; :Grid_scheme = "..." ;
:Algorithm_version = "v3_1" ; :Algorithm_description = "..." ; :Data_source = "..." ; :Data_source_URL = "..." ;
:NOAA_wct-export_Version = "..." ; :Authors = "..." ; :Project_sponsor = "..." ; :Project_name = "..." ;
"""
GRIDRAD_V4_2 = """
dimensions: Longitude = 792 ; Latitude = 792 ; Altitude = 29 ; time = 1 ; Index = 4 ; Sweep = 1691 ; SweepRef = 29 ;
variables:
  double Longitude(Longitude) ; Longitude:long_name = "Longitude" ; Longitude:units = "degrees_east" ;
    Longitude:delta = 0.0208333333333333 ; Longitude:description = "Longitudes of grid box centers" ;
    Longitude:class = "DIMENSION_SCALE" ;
  double Latitude(Latitude)   ; Latitude:long_name = "Latitude" ;   Latitude:units = "degrees_north" ;
    Latitude:delta = 0.0208333333333333 ; Latitude:description = "Latitudes of grid box centers" ;
    Latitude:class = "DIMENSION_SCALE" ;
  double Altitude(Altitude)   ; Altitude:long_name = "Geometric altitude with respect to geoid" ;
    Altitude:units = "km" ; Altitude:positive = "up" ; Altitude:description = "Altitudes of grid box centers" ;
    Altitude:delta = 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1., 1., 1., 1., 1., 1., 1.,
      1., 1., 1., 1., 1., 1., 1., 1. ; Altitude:class = "DIMENSION_SCALE" ;
  double time(time) ;           time:units = "minutes since 2000-01-01 00:00:00" ; time:calendar = "gregorian" ;
    time:long_name = "time" ; time:_FillValue = -2147483647. ; time:class = "DIMENSION_SCALE" ;
  byte   Nradobs(Altitude, Latitude, Longitude) ;  byte Nradecho(Altitude, Latitude, Longitude) ;
    Nradobs:long_name = "Number of radar azimuth scans (elevation angles) observing grid box" ;
    Nradecho:long_name = "Number of radar azimuth scans (elevation angles) with echo in grid box" ;
    Nradobs:units = "counts" ; Nradecho:units = "counts" ;
  int    index(Index) ;                    index:long_name = "Grid box subscripts" ;
    index:description = "1-D subscripts of grid boxes containing valid radar observations" ;
  float  Reflectivity(Index) ;             float wReflectivity(Index) ;
    Reflectivity:long_name = "Radar Reflectivity" ; Reflectivity:units = "dBZ" ; Reflectivity:missing_value = NaNf ;
    wReflectivity:long_name = "Reflectivity Bin Weights" ; wReflectivity:units = "dimensionless" ;
    wReflectivity:missing_value = 0.f ;
  float  SpectrumWidth(Index) ;            float wSpectrumWidth(Index) ;
    SpectrumWidth:long_name = "Velocity Spectrum Width" ; SpectrumWidth:units = "m s^-1" ;
    wSpectrumWidth:long_name = "Velocity Spectrum Width Bin Weights" ;
  float  AzShear(Index) ;                  float wAzShear(Index) ;
    AzShear:long_name = "Azimuthal Shear (Rotation)" ; AzShear:units = "s^-1" ;
    wAzShear:long_name = "Half (Azimuthal) Vorticity Bin Weights" ;
  float  Divergence(Index) ;               float wDivergence(Index) ;
    Divergence:long_name = "Radial Divergence" ; Divergence:units = "s^-1" ;
    wDivergence:long_name = "Radial Divergence Bin Weights" ;
  float  DifferentialReflectivity(Index) ; float wDifferentialReflectivity(Index) ;
  float  DifferentialPhase(Index) ;        float wDifferentialPhase(Index) ;
  float  CorrelationCoefficient(Index) ;   float wCorrelationCoefficient(Index) ;
  char   sweeps_merged(Sweep, SweepRef) ;
:Name = "GridRad" ; :Description = "..." ; :Analysis_time = "..." ;
:Analysis_time_window = "..." ; :File_creation_date = "..." ; :Grid_scheme = "..." ;
:Algorithm_version = "v4_2" ; :Algorithm_description = "..." ; :Storage_scheme = "netCDF-4, sparse" ;
:Data_source = "..." ; :Data_source_URL = "..." ; :Authors = "..." ; :Project_sponsor = "..." ; :Project_name = "..." ;
"""
GRIDRAD_V4_1 = """
dimensions: time = 1 ; Altitude = 29 ; Latitude = 528 ; Longitude = 672 ;
variables:
  double time(time) ; time:units = "seconds since 2001-01-01 00:00:00" ;
  double Longitude(Longitude) ; double Latitude(Latitude) ; double Altitude(Altitude) ;
  float ZH(time, Altitude, Latitude, Longitude) ;  float SW(time, Altitude, Latitude, Longitude) ;
  float VOR(time, Altitude, Latitude, Longitude) ; float DIV(time, Altitude, Latitude, Longitude) ;
  float ZDR(time, Altitude, Latitude, Longitude) ; float KDP(time, Altitude, Latitude, Longitude) ;
  float RHV(time, Altitude, Latitude, Longitude) ;
"""
LAYOUTS = {
    "larc-goes": (LARC_GOES, {"nlines", "npixels"}),
    "gridrad-v3.1": (GRIDRAD_V3_1, {"Longitude", "Latitude", "Index", "File"}),
    "gridrad-v4.2": (GRIDRAD_V4_2, {"Longitude", "Latitude", "Index", "Sweep"}),
    "gridrad-v4.1": (GRIDRAD_V4_1, {"Longitude", "Latitude"}),
}
DTYPES = {"float": "f4", "double": "f8", "byte": "i1", "int": "i4", "ushort": "u2", "char": "S1"}


def parse_layout(text):
    """Dimensions, variables (dtype, dims) and attributes (name -> variable "" for the file) of a CDL text."""
    dims = {n: int(s) for n, s in re.findall(r"(\w+) = (\d+) ;", text.split("variables:")[0])}
    body = text.split("variables:")[1]
    variables = {
        name: (DTYPES[kind], tuple(re.split(r",\s*", names)))
        for kind, name, names in re.findall(r"\b(float|double|byte|int|ushort|char)\s+(\w+)\(([^)]*)\)", body)
    }
    attributes = {
        (owner, name): value.strip()
        for owner, name, value in re.findall(r'(\w*):([\w-]+) = ("[^"]*"|[^;"]+?) ;', body)
    }
    return dims, variables, attributes


def constant(text):
    """A CDL constant as numpy has it; None for a text nobody has seen."""
    if text.startswith('"'):
        return None if text == '"..."' else text[1:-1]
    parts = [p.strip() for p in text.split(",")]
    if parts[0].endswith("US"):
        values = np.array([int(p[:-2]) for p in parts], np.uint16)
        return values if len(values) > 1 else values[0]
    if parts[0].endswith("f"):
        return np.float32(parts[0].replace("NaNf", "nanf")[:-1])
    values = np.array(parts, np.float64)
    return values if len(values) > 1 else values[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One small file of every format, by format."""
    root = tmp_path_factory.mktemp("files")
    return {name: write_scenes(root / name, format=name, scenes=1, shape=(96, 112))[0] for name in FORMATS}


def read(path, name):
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        return np.asarray(file[name][...])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plants_of(*rows):
    fields = [("time", "M8[s]"), ("latitude", "f8"), ("longitude", "f8"), ("mirrored", "?"), ("noise", "f8")]
    return np.array(list(rows), fields)


def render_on(weather, time, axes):
    return render_satellite(weather, time, *axes)


def axes_around(latitude, longitude, shape, per_degree=56):
    """Axes of a grid with this middle, row 0 in the north as in LaRC files."""
    rows, columns = ((np.arange(n) - n / 2 + 0.5) / per_degree for n in shape)
    return latitude - rows, longitude + columns


# Layouts


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_layout_matches_the_archive(files, name):
    text, free = LAYOUTS[name]
    dims, variables, attributes = parse_layout(text)
    with netCDF4.Dataset(files[name]) as file:
        file.set_auto_maskandscale(False)
        assert set(file.dimensions) == set(dims)
        assert {n: len(d) for n, d in file.dimensions.items() if n not in free} == {
            n: size for n, size in dims.items() if n not in free
        }
        assert {n: (v.dtype.str[1:], v.dimensions) for n, v in file.variables.items()} == variables
        for (owner, attribute), text in attributes.items():
            holder = file[owner] if owner else file
            assert attribute in holder.ncattrs(), f"{owner}:{attribute}"
            want, got = constant(text), holder.getncattr(attribute)
            if want is None:
                assert isinstance(got, str)
                assert got
            elif isinstance(want, str):
                assert got == want
            else:
                np.testing.assert_allclose(got, want, rtol=1e-12)
                assert np.asarray(got).dtype == np.asarray(want).dtype, f"{owner}:{attribute}"


def test_full_grids_have_the_archives_sizes_and_lattices():
    for name, shape, per_degree, offset in (
        ("larc-goes", (2240, 2856), 56, 0.5), ("gridrad-v4.2", (792, 792), 48, 0.5),
        ("gridrad-v3.1", (1201, 2301), 50, 0.0), ("gridrad-v4.1", (528, 672), 48, 0.5),
    ):  # fmt: skip
        for small in (None, (65, 130)):
            for axis, size in zip(_make_axes(FORMATS[name], small), small or shape, strict=True):
                assert axis.size == size
                whole = axis * per_degree - offset
                np.testing.assert_allclose(whole, np.rint(whole), atol=1e-6)
    latitude, longitude = _make_axes(FORMATS["gridrad-v4.2"])
    assert (latitude[0], latitude[-1]) == pytest.approx((27.5 + 1 / 96, 44.0 - 1 / 96))
    assert (longitude[0] + 360, longitude[-1] + 360) == pytest.approx((267.5 + 1 / 96, 284.0 - 1 / 96))


def test_names_and_folders_follow_the_archives(tmp_path):
    cases = {
        ("larc-goes", "2021-07-05T17:50"): "202107/NASALARC_GOES16_CONVECTION_DETECTION_20210705_1750.nc",
        ("gridrad-v3.1", "2011-04-27T12:00"): "201104/nexrad_3d_v3_1_20110427T120000Z.nc",
        # A convective day ends at 12 UTC of the next one.
        ("gridrad-v4.2", "2011-04-28T11:55"): "volumes/2011/20110427/nexrad_3d_v4_2_20110428T115500Z.nc",
        ("gridrad-v4.2", "2011-04-28T12:00"): "volumes/2011/20110428/nexrad_3d_v4_2_20110428T120000Z.nc",
        ("gridrad-v4.1", "2017-03-28T12:10"): "2017/20170328/nexrad_3d_4_1_20170328T121000Z.nc",
    }
    for (name, start), path in cases.items():
        assert write_scenes(tmp_path, format=name, start=start, shape=(16, 16), scenes=1) == [tmp_path / path]
    assert not list(tmp_path.rglob("*.part"))


def test_larc_coordinates_are_radians_and_times_are_modified_julian_days(files):
    path = files["larc-goes"]
    latitude, longitude = _make_axes(FORMATS["larc-goes"], (96, 112))
    assert latitude[0] > latitude[-1], "row 0 is north"
    np.testing.assert_allclose(read(path, "latitude") * np.float32(57.29578), latitude, atol=2e-5)
    np.testing.assert_allclose(read(path, "longitude") * np.float32(57.29578), longitude, atol=2e-5)
    with netCDF4.Dataset(path) as file:
        assert file["time"].date_time_stamp == "2021-07-05T17:50:17Z"
    start = np.datetime64("2021-07-05T17:50:17", "ms")
    days = (start - np.datetime64("1858-11-17", "ms")) / np.timedelta64(1, "D")
    assert read(path, "time")[0] == pytest.approx(days, abs=1e-9)
    scan = read(path, "scan_time")
    assert scan[0] == pytest.approx(days, abs=1e-9)
    assert (np.diff(scan) > 0).all()
    assert (scan[-1] - scan[0]) * 86400 < 600


def test_codes_are_the_rendered_values(files):
    weather = Weather(0, density=2.5)
    time, axes = np.datetime64("2021-07-05T17:50:00", "s"), _make_axes(FORMATS["larc-goes"], (96, 112))
    image = render_on(weather, time, axes)
    for name, values, scale in (
        ("ir_brightness_temperature", image.infrared, 0.01), ("visible_reflectance", image.visible, 0.0001),
    ):  # fmt: skip
        codes = read(files["larc-goes"], name)[0]
        there = codes != 65535
        assert there.mean() > 0.9
        np.testing.assert_allclose(codes[there] * scale, values[there], atol=0.51 * scale)
        assert there.all(axis=1).sum() + (~there).all(axis=1).sum() == 96, "missing lines are missing whole"
    np.testing.assert_array_equal(read(files["larc-goes"], "ot_id_number")[0][there], image.overshoots[there])


def test_radar_files_say_what_was_rendered(files):
    for name in ("gridrad-v4.2", "gridrad-v4.1"):
        path, format_ = files[name], FORMATS[name]
        axes = _make_axes(format_, (96, 112))
        weather = Weather(0, density=2.5)
        network = RadarNetwork(weather, *axes, np.array(format_.altitudes))
        volume = render_radar(weather, np.datetime64(format_.start, "s"), network)
        if name == "gridrad-v4.1":
            dense = read(path, "ZH")
            np.testing.assert_array_equal(np.flatnonzero(np.isfinite(dense)), volume.index)
            np.testing.assert_array_equal(dense.ravel()[volume.index], volume.fields["Reflectivity"])
            continue
        np.testing.assert_array_equal(read(path, "index"), volume.index)
        for field, values in volume.fields.items():
            np.testing.assert_array_equal(read(path, field), values)
            np.testing.assert_array_equal(read(path, f"w{field}"), volume.weights[field])
        np.testing.assert_array_equal(read(path, "Nradobs"), volume.observations)
        np.testing.assert_array_equal(read(path, "Nradecho"), volume.echoes)
        assert read(path, "Altitude").tolist() == [*(0.5 * k for k in range(1, 15)), *range(8, 23)]
        np.testing.assert_allclose(read(path, "Longitude"), axes[1] + 360)
        assert read(path, "time")[0] == (RADAR_TIME - np.datetime64("2000-01-01")) / np.timedelta64(1, "m")
        with netCDF4.Dataset(path) as file:
            assert file.Analysis_time == "2011-04-27 20:00:00Z"
            sweep = file["sweeps_merged"][0].tobytes()
            assert re.fullmatch(rb"K[A-Z]{3}-\d{8}T\d{6}Z-[ \d]\d\.\ddeg", sweep), sweep


def test_sparse_radar_files_keep_the_rules_of_a_real_one(files, tmp_path):
    (early,) = write_scenes(
        tmp_path, format="gridrad-v4.2", scenes=1, shape=(96, 112), start="2010-01-20T20:00"
    )
    velocities = ("SpectrumWidth", "AzShear", "Divergence")
    for path, moments in ((files["gridrad-v4.2"], 7), (early, 4)):
        with netCDF4.Dataset(path) as file:
            file.set_auto_mask(False)
            index, looks, echoes = (file[name][...] for name in ("index", "Nradobs", "Nradecho"))
            np.testing.assert_array_equal(index, np.flatnonzero(echoes))
            assert (echoes <= looks).all()
            names = [name for name in file.variables if f"w{name}" in file.variables]
            assert len(names) == moments, "dual polarization came in 2011"
            for name in names:
                np.testing.assert_array_equal(np.isnan(file[name][...]), file[f"w{name}"][...] == 0)
            lost = [np.isnan(file[name][...]).mean() for name in velocities]
            assert 0.1 < min(lost) <= max(lost) < 0.3
            assert not np.isnan(file["Reflectivity"][...]).any()
            assert file["index"].chunking() == [index.size]
            assert file["Nradobs"].chunking() == [15, 48, 56]


def test_synthetic_radar_files_have_the_header_of_a_real_one(real_data, tmp_path):
    (path,) = write_scenes(
        tmp_path, format="gridrad-v4.2", scenes=1, shape=(96, 112), start="2010-01-20T20:00"
    )
    real = next((real_data / "gridrad").glob("nexrad_3d_v4_2_*.nc"))
    with netCDF4.Dataset(path) as mine, netCDF4.Dataset(real) as other:
        assert path.name == real.name
        assert set(mine.dimensions) == set(other.dimensions)
        assert set(mine.ncattrs()) == set(other.ncattrs())
        assert set(mine.variables) == set(other.variables)
        for name, variable in other.variables.items():
            about = mine[name]
            assert (about.dtype, about.dimensions) == (variable.dtype, variable.dimensions)
            for attribute in variable.ncattrs():
                if name != "sweeps_merged":
                    found, expected = about.getncattr(attribute), variable.getncattr(attribute)
                    if isinstance(expected, str):
                        assert found == expected, (name, attribute)
                    else:
                        np.testing.assert_allclose(found, expected, rtol=1e-12)
            if name not in ("sweeps_merged", "Longitude", "Latitude", "Altitude", "time"):
                filters = {key: about.filters()[key] for key in ("zlib", "shuffle", "complevel")}
                assert filters == {key: variable.filters()[key] for key in filters}, name


# The satellite


def test_satellite_values_are_plausible():
    axes = axes_around(38.0, -97.5, (320, 360))
    image = render_on(Weather(0, density=2.5), NOON, axes)
    assert image.infrared.dtype == np.float32
    assert 180 < np.nanmin(image.infrared) < 235
    assert 285 < np.nanmax(image.infrared) < 325
    assert 0 <= np.nanmin(image.visible) < 0.15
    assert 0.6 < np.nanmax(image.visible) <= 1.1
    # Cold tops are bright by day.
    assert image.visible[image.infrared < 225].mean() > 2 * image.visible[image.infrared > 285].mean()


def test_overshooting_tops_are_numbered_and_colder_than_their_anvils():
    axes, weather = axes_around(38.0, -97.5, (700, 700)), Weather(0, density=1.92)
    found = colder = 0
    for hour in range(4):
        image = render_on(weather, NOON + np.timedelta64(hour, "h"), axes)
        numbers = np.unique(image.overshoots)
        assert numbers.tolist() == list(range(numbers.size))
        for number in numbers[1:]:
            rows, columns = np.nonzero(image.overshoots == number)
            assert np.ptp(rows) < 12
            window = np.s_[
                max(rows.min() - 8, 0) : rows.max() + 9, max(columns.min() - 8, 0) : columns.max() + 9
            ]
            colder += image.infrared[rows, columns].min() < np.median(image.infrared[window]) - 2
            found += 1
    assert found > 5
    assert colder > 0.9 * found


def test_visible_is_dark_where_the_sun_is_down_and_absent_at_night(tmp_path):
    axes = axes_around(38.0, -97.5, (64, 700))
    dusk = np.datetime64("2021-07-06T01:40:00", "s")
    image = render_on(Weather(0), dusk, axes)
    zenith = geometry.solar_zenith_angle(dusk, axes[0][:, None], axes[1])
    assert 0.1 < (zenith > 90).mean() < 0.9
    clear = np.abs(zenith - 90) > 0.01
    np.testing.assert_array_equal(np.isnan(image.visible)[clear], (zenith > 90)[clear])
    lit = zenith < 89
    assert 0.02 < (image.visible[lit] / np.cos(np.deg2rad(zenith))[lit]).mean() < 1.0
    (path,) = write_scenes(tmp_path, shape=(32, 40), start="2021-07-06T06:00", scenes=1)
    with netCDF4.Dataset(path) as file:
        assert "visible_reflectance" not in file.variables


def test_surface_is_warmer_by_day_than_by_night_over_land():
    axes = tuple(axis[::8] for axis in _make_axes(FORMATS["larc-goes"]))
    weather = Weather(0, density=0.0)
    day, night = (
        render_on(weather, np.datetime64(t, "s"), axes).infrared
        for t in ("2021-07-05T20:00", "2021-07-06T10:00")
    )
    height = weather.land.on_grid(0.0, axes)(slice(None))
    clear = (day > 286) & (night > 278)
    land, sea = clear & (height > 0.2), clear & (height < -0.8)
    assert min(land.sum(), sea.sum()) > 500
    assert (day - night)[land].mean() > 5 > 1 > abs((day - night)[sea].mean())


def test_limb_corner_and_dropped_lines_are_missing(tmp_path):
    axes = axes_around(55.0, -117.0, (200, 260))
    image = render_on(Weather(0), NOON, axes)
    zenith = geometry.satellite_zenith_angle(axes[0][:, None], axes[1], -75.2)
    missing = np.isnan(image.infrared)
    assert 0.05 < missing.mean() < 0.95
    clear = np.abs(zenith - 74.0) > 0.05
    np.testing.assert_array_equal(missing[clear], (zenith > 74.0)[clear])
    np.testing.assert_array_equal(missing, np.isnan(image.visible))
    assert not image.overshoots[missing].any()
    dropped = [
        int((read(path, "ir_brightness_temperature")[0] == 65535).all(axis=1).sum())
        for path in write_scenes(tmp_path, shape=(100, 40), scenes=12)
    ]
    assert 0 < sum(n > 0 for n in dropped) < 12


# The weather


@pytest.mark.parametrize("name", ["larc-goes", "gridrad-v4.2"])
def test_same_seed_writes_the_same_bytes(tmp_path, name):
    options = {"format": name, "scenes": 2, "shape": (64, 80)}
    first, again, other = (
        [digest(p) for p in write_scenes(tmp_path / str(k), seed=seed, **options)]
        for k, seed in enumerate((4, 4, 5))
    )
    assert first == again
    assert not set(first) & set(other)
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("name", "start"), [("larc-goes", "2021-07-05T20:50"), ("gridrad-v4.2", "2011-04-27T23:00")]
)
def test_scene_does_not_depend_on_the_others(tmp_path, name, start):
    options = {"format": name, "shape": (64, 80), "interval": "1h"}
    together = write_scenes(tmp_path / "a", scenes=4, **options)
    alone = write_scenes(tmp_path / "b", scenes=1, start=start, **options)
    assert alone[0].name == together[3].name
    assert digest(alone[0]) == digest(together[3])


def test_storms_are_born_move_grow_and_die():
    weather = Weather(1)
    axes = (np.array([28.0, 48.0]), np.array([-110.0, -84.0]))
    times = seconds_of(NOON) + 900.0 * np.arange(48)
    seen = {}
    for seconds in times:
        storms = weather.storms(seconds, axes)
        assert 8 < len(storms) < 200
        for storm in storms:
            assert storm.is_alive(seconds)
            seen.setdefault((storm.birth, storm.latitude), []).append((seconds, storm))
    whole = [
        life
        for life in seen.values()
        if life[0][1].age(life[0][0]) < 15 and life[-1][1].life - life[-1][1].age(life[-1][0]) < 15
    ]
    assert len(whole) > 50, "lives from birth to death"
    sizes, growth = [], []
    for life in whole:
        (start, storm), (end, _) = life[0], life[-1]
        km = geometry.great_circle_km(*storm.position(start), *storm.position(end))
        assert km == pytest.approx(np.hypot(*storm.motion) * (end - start) / 1000, rel=0.1, abs=0.2)
        areas = [float((storm.anvil(t).weight * storm.anvil(t).radius ** 2).sum()) for t, _ in life]
        if len(areas) > 3:
            growth.append(max(areas) / max(areas[0], 1e-3))
            assert areas[-1] < max(areas)
        sizes.append(max(areas))
    assert np.median(growth) > 1.3
    assert max(sizes) > 9 * np.median(sizes) > 0, "storms of many sizes"
    counts = [len(Weather(0, density=d).storms(seconds_of(NOON), axes)) for d in (0.0, 0.5, 2.0)]
    assert counts[0] == 0 < counts[1] < counts[2]
    with pytest.raises(SchemaError, match="seed: got -1; expected 0 or more"):
        Weather(-1)


def test_radar_and_satellite_see_the_same_storms():
    weather = Weather(1, density=2.5)
    latitude, longitude = axes_around(38.0, -97.5, (480, 480), 48)
    latitude = latitude[::-1]
    network = RadarNetwork(weather, latitude, longitude, np.array(FORMATS["gridrad-v4.2"].altitudes))
    image = render_satellite(weather, RADAR_TIME, latitude, longitude)
    volume = render_radar(weather, RADAR_TIME, network)
    strong = volume.index[volume.fields["Reflectivity"] > 45] % (480 * 480)
    assert strong.size > 20
    assert np.median(image.infrared.ravel()[strong]) < np.nanmedian(image.infrared) - 30


# Plants


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_plants_are_the_same_complex_elsewhere_and_later(tmp_path):
    request = {"shape": (900, 900), "scenes": 8, "interval": "7h", "seed": 3}
    table = plant_table(plants=8, **request)
    assert (table["mirrored"][0], table["noise"][0]) == (False, 0.0)
    assert table["mirrored"].any()
    assert (np.diff(table["time"]) == np.timedelta64(7, "h")).all()
    places = table["latitude"], table["longitude"]
    apart = geometry.great_circle_km(places[0][:, None], places[1][:, None], *places)
    assert apart[~np.eye(8, dtype=bool)].min() > 200
    weather, shapes = Weather(3, plants=table), []
    for row in table[[0, 2, 5]]:
        axes = axes_around(row["latitude"], row["longitude"], (200, 200))
        cold = render_on(weather, row["time"], axes).infrared < 235
        shapes.append(cold[:, ::-1] if row["mirrored"] else cold)
    assert 100 < np.ptp(np.nonzero(shapes[0])[1]) < 200
    assert all(overlap(shapes[0], other) > 0.6 for other in shapes[1:])
    assert overlap(shapes[0], shapes[0][::-1]) < 0.6, "the shape is distinctive"


def test_plant_table_tells_what_is_planted(tmp_path):
    request = {"scenes": 3, "shape": (400, 420), "interval": "6h", "seed": 9}
    table = plant_table(plants=3, **request)
    axes = _make_axes(FORMATS["larc-goes"], (400, 420))
    for row, path in zip(table, write_scenes(tmp_path, plants=3, **request), strict=True):
        y, x = (
            int(np.abs(axis - row[name]).argmin())
            for axis, name in zip(axes, ("latitude", "longitude"), strict=True)
        )
        window = np.s_[y - 60 : y + 60, x - 60 : x + 60]
        assert (read(path, "ir_brightness_temperature")[0][window] < 23500).mean() > 0.25


def test_weather_makes_way_for_a_plant_and_noise_changes_it():
    box = (np.array([37.0, 39.0]), np.array([-99.0, -96.0]))
    place = (NOON, 38.0, -97.5, False)
    planted, noisy = (Weather(0, plants=plants_of((*place, noise))) for noise in (0.0, 1.0))
    near = [
        s
        for s in planted.storms(seconds_of(NOON), box)
        if geometry.great_circle_km(*s.position(seconds_of(NOON)), 38.0, -97.5) < 210
    ]
    assert len(near) == 1, "the plant alone"
    axes = axes_around(38.0, -97.5, (256, 256))
    images = [render_on(w, NOON, axes).infrared for w in (planted, noisy)]
    assert 0.15 < overlap(*(i < 235 for i in images)) < 0.9


# The radars


@pytest.fixture(scope="module")
def volume():
    latitude, longitude = axes_around(38.0, -97.5, (300, 320), 48)
    weather = Weather(1, density=2.5)
    network = RadarNetwork(weather, latitude[::-1], longitude, np.array(FORMATS["gridrad-v4.2"].altitudes))
    return render_radar(weather, RADAR_TIME, network), network


def test_radar_lists_echo_only_where_radars_looked(volume):
    volume, network = volume
    assert (np.diff(volume.index) > 0).all(), "C order, each bin once"
    looks, echoes = volume.observations.ravel(), volume.echoes.ravel()
    assert (looks[volume.index] > 0).all()
    assert (echoes[volume.index] > 0).all()
    assert (volume.echoes <= volume.observations).all()
    assert 0.002 < volume.index.size / looks.size < 0.15
    assert volume.observations.min() == 0 < volume.observations.max() < 127
    # Cones of silence and the gaps between radars: more is seen at 3 km than at 0.5 km.
    seen = (volume.observations > 0).mean(axis=(1, 2))
    assert seen[5] > seen[0]
    assert all(re.fullmatch("K[A-Z]{3}", site.name) for site in network.sites)


def test_radar_fields_have_weights_and_plausible_values(volume):
    volume, network = volume
    dbz, level = volume.fields["Reflectivity"], volume.index // (300 * 320)
    assert len(volume.fields) == 7
    assert -6 < dbz.min() < 5
    assert 40 < dbz.max() < 75
    assert dbz[level == 5].max() > dbz[level == 20].max() + 5, "echo decreases with height"
    assert network.altitude_km[level].max() > 10
    for name, values in volume.fields.items():
        assert values.dtype == np.float32
        assert values.shape == volume.weights[name].shape == volume.index.shape
        lost = np.isnan(values)
        assert lost.mean() < 0.25
        assert (volume.weights[name][lost] == 0).all()
    rho = volume.fields["CorrelationCoefficient"]
    assert rho[dbz > 40].mean() > 0.95
    assert (rho < 0.9).any(), "something for quality control to remove"
    often = volume.echoes.ravel()[volume.index] / volume.observations.ravel()[volume.index]
    assert (often < 0.6).any()
    assert often[dbz > 40].mean() > often[dbz < 5].mean()


# Requests


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"format": "grib"}, "format: got 'grib'; expected one of"),
        ({"scenes": 0}, "scenes: got 0; expected 1 or more"),
        ({"shape": (1, 5)}, r"shape: got \(1, 5\); expected at least 2 rows"),
        ({"shape": (20000, 50)}, "leaves the map"),
        ({"interval": "90s"}, "hold whole minutes"),
        ({"format": "gridrad-v4.2", "plants": 2}, "plants: got 2 for gridrad-v4.2; expected 0"),
        ({"interval": "0s"}, "expected more than 0 s"),
        ({"interval": "soon"}, "got 'soon'; expected a length of time"),
    ],
)
def test_request_that_makes_no_sense_is_refused_before_writing(tmp_path, request_, message):
    with pytest.raises(SchemaError, match=message):
        write_scenes(tmp_path / "out", **request_)
    assert not (tmp_path / "out").exists()
