"""Made-up source files: faithful layouts, weather that goes on from scene to scene, faults where said."""

from __future__ import annotations

import hashlib
import itertools
import re

import netCDF4
import numpy as np
import pytest

from gridrad_cube import geometry
from gridrad_cube.schema import SchemaError
from gridrad_cube.synthetic import (
    FAULTS,
    FORMATS,
    Plant,
    RadarNetwork,
    Weather,
    iter_scenes,
    make_axes,
    make_run,
    plant_fault,
    plant_table,
    read_truth,
    render_radar,
    render_satellite,
    storms_at,
    write_gridrad_dense,
    write_gridrad_sparse,
    write_larc_goes,
    write_scenes,
)
from gridrad_cube.synthetic.runs import parse_interval

NOON = np.datetime64("2021-07-05T18:00:00", "s")

# The layouts as the archives have them; "..." stands for a text nobody has seen.
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
    Longitude:delta = 0.0208333333333333 ;
  double Latitude(Latitude)   ; Latitude:long_name = "Latitude" ;   Latitude:units = "degrees_north" ;
    Latitude:delta = 0.0208333333333333 ;
  double Altitude(Altitude)   ; Altitude:long_name = "Altitude" ;   Altitude:units = "km" ; Altitude:delta = 0.5 ;
  double time(time) ;           time:units = "seconds since 2001-01-01 00:00:00" ;
  byte   Nradobs(Altitude, Latitude, Longitude) ;  byte Nradecho(Altitude, Latitude, Longitude) ;
  int    index(Index) ;
  float  Reflectivity(Index) ;             float wReflectivity(Index) ;
  float  SpectrumWidth(Index) ;            float wSpectrumWidth(Index) ;
  float  AzShear(Index) ;                  float wAzShear(Index) ;
  float  Divergence(Index) ;               float wDivergence(Index) ;
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
    return np.float64(parts[0])


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


# Layouts ------------------------------------------------------------------------------------------------------


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


def test_layout_parser_reads_what_it_should():
    dims, variables, attributes = parse_layout(LARC_GOES)
    assert dims == {"time": 1, "nlines": 2240, "npixels": 2856}
    assert variables["ot_id_number"] == ("u2", ("time", "nlines", "npixels"))
    assert len(attributes) == 5 + 4 + 4 + 2 + 6 + 5 + 4


def test_layout_of_every_sparse_field_has_what_official_readers_ask(files):
    with netCDF4.Dataset(files["gridrad-v4.2"]) as file:
        for name in parse_layout(GRIDRAD_V4_2)[1]:
            asked = {"long_name", "units"} if name not in ("index", "sweeps_merged") else set()
            asked |= {"missing_value"} if name.startswith("w") else set()
            assert asked <= set(file[name].ncattrs()), name


def test_full_grids_have_the_archives_sizes_and_lattices():
    for name, shape, per_degree, offset in (
        ("larc-goes", (2240, 2856), 56, 0.5), ("gridrad-v4.2", (792, 792), 48, 0.5),
        ("gridrad-v3.1", (1201, 2301), 50, 0.0), ("gridrad-v4.1", (528, 672), 48, 0.5),
    ):  # fmt: skip
        for small in (None, (65, 130)):
            for axis, size in zip(make_axes(FORMATS[name], small), small or shape, strict=True):
                assert axis.size == size
                whole = axis * per_degree - offset
                np.testing.assert_allclose(whole, np.rint(whole), atol=1e-6)
    latitude, longitude = make_axes(FORMATS["gridrad-v4.2"])
    assert (latitude[0], latitude[-1]) == pytest.approx((27.5 + 1 / 96, 44.0 - 1 / 96))
    assert (longitude[0] + 360, longitude[-1] + 360) == pytest.approx((267.5 + 1 / 96, 284.0 - 1 / 96))
    latitude, longitude = make_axes(FORMATS["gridrad-v4.2"], (1248, 2832))
    assert (latitude[0], longitude[0] + 360) == pytest.approx((24 + 1 / 96, 235 + 1 / 96))


def test_small_scene_is_a_part_of_the_full_lattice():
    full = make_axes(FORMATS["larc-goes"])
    small = make_axes(FORMATS["larc-goes"], (100, 120), center=(30.0, -90.0))
    for part, whole in zip(small, full, strict=True):
        assert np.isin(np.rint(part * 112), np.rint(whole * 112)).all()
    assert abs(small[0].mean() - 30.0) < 0.02
    assert small[0][0] > small[0][-1], "row 0 is north"


def test_names_and_folders_follow_the_archives(tmp_path):
    small = {"shape": (16, 16), "scenes": 1}
    cases = {
        ("larc-goes", "2021-07-05T17:50"): "202107/NASALARC_GOES16_CONVECTION_DETECTION_20210705_1750.nc",
        ("gridrad-v3.1", "2011-04-27T12:00"): "201104/nexrad_3d_v3_1_20110427T120000Z.nc",
        # A convective day ends at 12 UTC of the next one.
        ("gridrad-v4.2", "2011-04-28T11:55"): "volumes/2011/20110427/nexrad_3d_v4_2_20110428T115500Z.nc",
        ("gridrad-v4.2", "2011-04-28T12:00"): "volumes/2011/20110428/nexrad_3d_v4_2_20110428T120000Z.nc",
        ("gridrad-v4.1", "2017-03-28T12:10"): "2017/20170328/nexrad_3d_4_1_20170328T121000Z.nc",
    }
    for (name, start), path in cases.items():
        assert write_scenes(tmp_path, format=name, start=start, **small) == [tmp_path / path]
    assert not list(tmp_path.rglob("*.part"))


# LaRC ---------------------------------------------------------------------------------------------------------


def test_larc_coordinates_are_radians_and_times_are_modified_julian_days(files):
    path = files["larc-goes"]
    latitude, longitude = make_axes(FORMATS["larc-goes"], (96, 112))
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


def test_larc_values_are_plausible():
    run = make_run(shape=(320, 360), start=NOON)
    image = render_satellite(run.weather, NOON, run.latitude, run.longitude)
    assert image.infrared.dtype == np.float32
    assert 180 < np.nanmin(image.infrared) < 235
    assert 285 < np.nanmax(image.infrared) < 325
    assert 0 <= np.nanmin(image.visible) < 0.15
    assert 0.6 < np.nanmax(image.visible) <= 1.1
    # Cold tops are bright by day.
    assert image.visible[image.infrared < 225].mean() > 2 * image.visible[image.infrared > 285].mean()


def test_overshooting_tops_are_numbered_and_colder_than_their_anvils():
    run = make_run(shape=(700, 700), start=NOON)
    found = colder = 0
    for hour in range(4):
        image = render_satellite(run.weather, NOON + np.timedelta64(hour, "h"), run.latitude, run.longitude)
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
    run = make_run(shape=(64, 700), center=(38.0, -97.5))
    dusk = np.datetime64("2021-07-06T01:40:00", "s")
    image = render_satellite(run.weather, dusk, run.latitude, run.longitude)
    zenith = geometry.solar_zenith_angle(dusk, run.latitude[:, None], run.longitude)
    assert 0.1 < (zenith > 90).mean() < 0.9
    clear = np.abs(zenith - 90) > 0.01
    np.testing.assert_array_equal(np.isnan(image.visible)[clear], (zenith > 90)[clear])
    cosine = np.cos(np.deg2rad(zenith))
    lit = zenith < 89
    assert 0.02 < (image.visible[lit] / cosine[lit]).mean() < 1.0
    names = {}
    for choice in ("absent", "fill", "zero"):
        path = write_scenes(
            tmp_path / choice, shape=(32, 40), start="2021-07-06T06:00", scenes=1, night_visible=choice
        )[0]
        with netCDF4.Dataset(path) as file:
            names[choice] = "visible_reflectance" in file.variables
        if choice != "absent":
            assert (read(path, "visible_reflectance") == {"fill": 65535, "zero": 0}[choice]).mean() > 0.9
        assert (read(path, "ir_brightness_temperature") < 65535).mean() > 0.9
    assert names == {"absent": False, "fill": True, "zero": True}


def test_surface_is_warmer_by_day_than_by_night_over_land():
    latitude, longitude = (axis[::8] for axis in make_axes(FORMATS["larc-goes"]))
    weather = Weather(0, density=0.0)
    day, night = (
        render_satellite(weather, np.datetime64(t, "s"), latitude, longitude).infrared
        for t in ("2021-07-05T20:00", "2021-07-06T10:00")
    )
    height = weather.land.sampler(0.0, latitude, longitude).rows(slice(0, latitude.size))
    clear = (day > 286) & (night > 278)
    land, sea = clear & (height > 0.2), clear & (height < -0.8)
    assert min(land.sum(), sea.sum()) > 500
    assert (day - night)[land].mean() > 5 > 1 > abs((day - night)[sea].mean())


def test_limb_corner_and_dropped_lines_are_missing(tmp_path):
    latitude, longitude = make_axes(FORMATS["larc-goes"], (200, 260), center=(55.0, -117.0))
    image = render_satellite(Weather(0), NOON, latitude, longitude)
    zenith = geometry.satellite_zenith_angle(latitude[:, None], longitude, -75.2)
    missing = np.isnan(image.infrared)
    assert 0.05 < missing.mean() < 0.95
    clear = np.abs(zenith - 74.0) > 0.05
    np.testing.assert_array_equal(missing[clear], (zenith > 74.0)[clear])
    np.testing.assert_array_equal(missing, np.isnan(image.visible))
    assert not image.overshoots[missing].any()

    dropped = []
    for path in write_scenes(tmp_path, shape=(100, 40), scenes=12):
        empty = (read(path, "ir_brightness_temperature")[0] == 65535).all(axis=1)
        dropped.append(int(empty.sum()))
        np.testing.assert_array_equal(empty, (read(path, "visible_reflectance")[0] == 65535).all(axis=1))
    assert 0 < sum(n > 0 for n in dropped) < 12


def test_write_larc_goes_packs_floats_and_keeps_codes(tmp_path):
    latitude, longitude = [40.0, 39.98], [-100.0, -99.98, -99.96]
    kelvin = np.array([[200.004, 300.0, np.nan], [150.0, 900.0, -np.inf]], np.float32)
    codes = np.array([[0, 1, 65535], [20000, 65534, 7]], np.uint16)
    path = write_larc_goes(
        tmp_path / "a" / "x.nc", time=NOON, latitude=latitude, longitude=longitude, ir=kelvin, visible=codes
    )
    assert read(path, "ir_brightness_temperature")[0].tolist() == [[20000, 30000, 65535], [15000, 65534, 0]]
    assert read(path, "visible_reflectance")[0].tolist() == codes.tolist()
    with netCDF4.Dataset(path) as file:
        assert "ot_id_number" not in file.variables
    with pytest.raises(SchemaError, match=r"ir_brightness_temperature: shape is \(2, 3\); expected \(2, 2\)"):
        write_larc_goes(tmp_path / "y.nc", time=NOON, latitude=latitude, longitude=longitude[:2], ir=kelvin)
    assert not (tmp_path / "y.nc").exists()


# The weather --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["larc-goes", "gridrad-v4.2"])
def test_same_seed_writes_the_same_bytes(tmp_path, name):
    options = {"format": name, "scenes": 2, "shape": (64, 80), "plants": 1}
    first, again, other = (
        [digest(p) for p in write_scenes(tmp_path / str(k), seed=seed, **options)]
        for k, seed in enumerate((4, 4, 5))
    )
    assert first == again
    assert not set(first) & set(other)
    assert first[0] != first[1]


def test_scene_does_not_depend_on_the_others(tmp_path):
    options = {"shape": (64, 80), "interval": "1h"}
    together = write_scenes(tmp_path / "a", scenes=4, **options)
    alone = write_scenes(tmp_path / "b", scenes=1, start="2021-07-05T20:50", **options)
    assert alone[0].name == together[3].name
    assert digest(alone[0]) == digest(together[3])
    # And in any order within one Weather.
    run = make_run(format="gridrad-v4.2", scenes=3, shape=(64, 64), interval="1h")
    network = RadarNetwork(run.weather, run.latitude, run.longitude, np.array(run.format.altitudes))
    forth = [render_radar(run.weather, t, network) for t in run.times]
    fresh = make_run(format="gridrad-v4.2", scenes=3, shape=(64, 64), interval="1h")
    for time, volume in reversed(list(zip(fresh.times, forth, strict=True))):
        back = render_radar(fresh.weather, time, network)
        np.testing.assert_array_equal(back.index, volume.index)
        np.testing.assert_array_equal(back.fields["Reflectivity"], volume.fields["Reflectivity"])


def test_storms_are_born_move_grow_and_die():
    weather = Weather(1)
    times = NOON + np.arange(0, 12 * 4) * np.timedelta64(15, "m")
    tables = [weather.storms_at(t, (28, 48), (-110, -84)) for t in times]
    assert all(8 < t.size < 120 for t in tables)
    seen, sizes, growth = {}, [], []
    for table in tables:
        assert np.unique(table["id"]).size == table.size
        assert ((table["age_minutes"] > 0) & (table["age_minutes"] < table["life_minutes"])).all()
        for row in table:
            seen.setdefault(int(row["id"]), []).append(row)
    whole = [rows for i, rows in seen.items() if rows[0]["age_minutes"] <= 15 and i not in tables[-1]["id"]]
    assert len(whole) > 50, "lives from birth to death"
    for rows in whole:
        for a, b in itertools.pairwise(rows):
            minutes = float(b["age_minutes"] - a["age_minutes"])
            km = geometry.great_circle_km(a["latitude"], a["longitude"], b["latitude"], b["longitude"])
            speed = np.hypot(a["eastward_m_s"], a["northward_m_s"])
            assert km == pytest.approx(speed * minutes * 0.06, rel=0.05, abs=0.2)
            assert a["kind"] == b["kind"]
        grown = [float(r["size_km"]) for r in rows if np.isfinite(r["size_km"])]
        if len(grown) > 3:
            growth.append(max(grown) / grown[0])
            assert max(np.abs(np.diff(grown))) < 0.7 * max(grown), "no jumps"
        sizes.append(max(grown, default=0.0))
    assert np.median(growth) > 1.3
    assert max(sizes) > 3 * np.median(sizes) > 0, "storms of many sizes"
    kinds = np.concatenate([t["kind"] for t in tables])
    assert set(kinds) == {"cell", "cluster", "line", "complex"}


def test_storm_in_the_image_moves_as_the_table_says():
    plant = Plant(time=NOON, latitude=38.0, longitude=-97.5)
    weather = Weather(2, plants=[plant], density=0.0)
    latitude, longitude = make_axes(FORMATS["larc-goes"], (360, 360))
    middles = []
    for minutes in (0, 10, 20):
        time = NOON + np.timedelta64(minutes, "m")
        image = render_satellite(weather, time, latitude, longitude)
        cold = np.clip(225.0 - image.infrared, 0, None)
        middles.append((cold.sum(1) @ latitude / cold.sum(), cold.sum(0) @ longitude / cold.sum()))
        assert weather.storms_at(time, (36, 40), (-100, -95))["plant"].tolist() == [0]
    km = [geometry.great_circle_km(*middles[0], *middles[k]) for k in (1, 2)]
    assert 2 < km[0] < 15
    assert km[0] < km[1] < 30, "goes on in one direction"


def test_truth_agrees_with_the_radar():
    run = make_run(format="gridrad-v4.2", shape=(500, 500), center=(38.0, -97.5), seed=1)
    network = RadarNetwork(run.weather, run.latitude, run.longitude, np.array(run.format.altitudes))
    covered = network.observations.any(axis=0)
    checked = 0
    for hour in (0, 2, 4, 6):
        time = run.times[0] + np.timedelta64(hour, "h")
        volume = render_radar(run.weather, time, network)
        dense = np.full(volume.observations.size, -99.0, np.float32)
        dense[volume.index] = volume.fields["Reflectivity"]
        column = dense.reshape(volume.observations.shape).max(axis=0)
        ends = [(axis.min() + 1.5, axis.max() - 1.5) for axis in (run.latitude, run.longitude)]
        for row in run.weather.storms_at(time, *ends):
            y, x = (
                np.abs(axis - row[name]).argmin()
                for axis, name in ((run.latitude, "latitude"), (run.longitude, "longitude"))
            )
            near = np.s_[y - 70 : y + 71, x - 70 : x + 71]
            if covered[near].mean() > 0.99 and row["peak_dbz"] > 40:
                assert column[near].max() > row["peak_dbz"] - 8
                checked += 1
    assert checked >= 3


def test_radar_and_satellite_see_the_same_storms():
    center = (38.0, -97.5)
    radar = make_run(format="gridrad-v4.2", shape=(480, 480), center=center, seed=1)
    network = RadarNetwork(radar.weather, radar.latitude, radar.longitude, np.array(radar.format.altitudes))
    image = render_satellite(radar.weather, radar.times[0], radar.latitude, radar.longitude)
    volume = render_radar(radar.weather, radar.times[0], network)
    strong = volume.index[volume.fields["Reflectivity"] > 45] % (480 * 480)
    assert strong.size > 20
    assert np.median(image.infrared.ravel()[strong]) < np.nanmedian(image.infrared) - 30


def test_density_of_storms_can_be_chosen():
    box = ((28, 48), (-110, -84))
    counts = [Weather(0, density=d).storms_at(NOON, *box).size for d in (0.0, 0.5, 2.0)]
    assert counts[0] == 0 < counts[1] < counts[2]
    assert storms_at(0, NOON, latitude=box[0], longitude=box[1], density=0.5).size == counts[1]
    with pytest.raises(SchemaError, match="seed: got -1; expected 0 or more"):
        Weather(-1)


# Plants -------------------------------------------------------------------------------------------------------


def shape_at(run, row):
    """The cold cloud shield in a window of 200 px around a plant, the right way round."""
    image = render_satellite(run.weather, row["time"], run.latitude, run.longitude).infrared
    y, x = round(float(row["row"])), round(float(row["column"]))
    part = image[y - 100 : y + 101, x - 100 : x + 101]
    return (part[:, ::-1] if row["mirrored"] else part) < 235


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_plants_are_the_same_complex_elsewhere_and_later():
    run = make_run(shape=(900, 900), scenes=8, interval="7h", plants=8, seed=3)
    table = run.plants
    assert table["scene"].tolist() == list(range(8))
    assert (table["mirrored"][0], table["noise"][0]) == (False, 0.0)
    assert table["mirrored"].any()
    assert (np.array(run.times)[table["scene"]] == table["time"]).all()
    apart = geometry.great_circle_km(
        table["latitude"][:, None], table["longitude"][:, None], table["latitude"], table["longitude"]
    )
    assert apart[~np.eye(8, dtype=bool)].min() > 200
    assert (np.diff(table["time"]) > np.timedelta64(6, "h")).all()
    assert np.unique(table["row"] % 256).size == 8
    shapes = [shape_at(run, row) for row in table[[0, 2, 5]]]
    width = np.ptp(np.nonzero(shapes[0])[1])
    assert 100 < width < 200
    for other in shapes[1:]:
        assert overlap(shapes[0], other) > 0.6
    turned = shapes[0][::-1]
    assert overlap(shapes[0], turned) < 0.6, "the shape is distinctive"


def test_plant_table_tells_what_is_planted(tmp_path):
    options = {"scenes": 3, "shape": (400, 420), "interval": "6h", "seed": 9}
    table = plant_table(plants=3, **options)
    paths = write_scenes(tmp_path, plants=3, **options)
    truth = read_truth(tmp_path)
    assert [p["row"] for p in truth["plants"]] == table["row"].tolist()
    assert [p["time"] for p in truth["plants"]] == [f"{t}Z" for t in table["time"]]
    for row, path in zip(table, paths, strict=True):
        assert 90 <= row["row"] <= 310
        assert 90 <= row["column"] <= 330
        kelvin = read(path, "ir_brightness_temperature")[0] * 0.01
        y, x = int(row["row"]), int(row["column"])
        assert (kelvin[y - 60 : y + 60, x - 60 : x + 60] < 235).mean() > 0.25


def test_plants_stand_where_the_radars_look():
    run = make_run(format="gridrad-v4.2", plants=6, scenes=6, interval="7h", seed=0)
    network = RadarNetwork(run.weather, run.latitude, run.longitude, np.array(run.format.altitudes))
    for row in run.plants:
        y, x = int(row["row"]), int(row["column"])
        assert (network.observations[10, y - 50 : y + 50, x - 50 : x + 50] > 0).mean() > 0.97


def test_weather_makes_way_for_a_plant_and_noise_changes_it():
    plant = Plant(time=NOON, latitude=38.0, longitude=-97.5)
    plain = Weather(0)
    planted = plain.plant(plant)
    box = ((37.0, 39.0), (-99.0, -96.0))
    assert planted.storms_at(NOON, *box)["id"].tolist() == [-1]
    assert (
        planted.storms_at(NOON, (18, 58), (-123, -72)).size
        <= plain.storms_at(NOON, (18, 58), (-123, -72)).size + 1
    )
    noisy = plain.plant(Plant(time=NOON, latitude=38.0, longitude=-97.5, noise=1.0))
    run = make_axes(FORMATS["larc-goes"], (256, 256))
    images = [render_satellite(w, NOON, *run).infrared for w in (planted, noisy)]
    assert 0.15 < overlap(*(i < 235 for i in images)) < 0.9


# GridRad ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volume():
    run = make_run(format="gridrad-v4.2", shape=(300, 320), center=(38.0, -97.5), seed=1)
    network = RadarNetwork(run.weather, run.latitude, run.longitude, np.array(run.format.altitudes))
    return render_radar(run.weather, run.times[0], network), network


def test_radar_lists_echo_only_where_radars_looked(volume):
    volume, network = volume
    assert (np.diff(volume.index) > 0).all(), "C order, each bin once"
    looks, echoes = volume.observations.ravel(), volume.echoes.ravel()
    assert (looks[volume.index] > 0).all()
    assert (echoes[volume.index] > 0).all()
    assert (volume.echoes <= volume.observations).all()
    assert 0.002 < volume.index.size / looks.size < 0.15
    assert volume.observations.min() == 0 < volume.observations.max() < 127
    # Cones of silence and the gaps between radars: more is seen at 3 km than at 0.5 km or at 22 km.
    seen = (volume.observations > 0).mean(axis=(1, 2))
    assert seen[5] > seen[0]
    site = min(network.sites, key=lambda s: abs(s.latitude - 38) + abs(s.longitude + 97.5))
    assert site.name.startswith("K")
    assert len(site.name) == 4


def test_radar_fields_have_weights_and_plausible_values(volume):
    volume, _ = volume
    dbz = volume.fields["Reflectivity"]
    assert len(volume.fields) == 7
    assert -6 < dbz.min() < 5
    assert 40 < dbz.max() < 75
    for name, values in volume.fields.items():
        assert values.dtype == np.float32
        assert values.shape == volume.weights[name].shape == volume.index.shape
        lost = np.isnan(values)
        assert lost.mean() < 0.05
        assert (volume.weights[name][lost] == 0).all()
    rho = volume.fields["CorrelationCoefficient"]
    assert rho[dbz > 40].mean() > 0.95
    assert (rho < 0.9).any(), "something for quality control to remove"
    often = volume.echoes.ravel()[volume.index] / volume.observations.ravel()[volume.index]
    assert (often < 0.6).any()
    assert often[dbz > 40].mean() > often[dbz < 5].mean()


def test_radar_echo_falls_off_with_height(volume):
    volume, network = volume
    level = volume.index // (300 * 320)
    dbz = volume.fields["Reflectivity"]
    assert dbz[level == 5].max() > dbz[level == 20].max() + 5
    assert network.altitude_km[level].max() > 10


def test_weight_falls_off_with_distance():
    weather = Weather(0)
    latitude, longitude = make_axes(FORMATS["gridrad-v4.2"], (400, 400), center=(38.0, -97.5))
    network = RadarNetwork(weather, latitude, longitude, np.array([1.0, 3.0, 6.0]))
    site = network.sites[len(network.sites) // 2]
    network.sites = [site]
    rows = np.abs(latitude - site.latitude).argmin() * np.ones(60, int)
    east = np.abs(longitude - site.longitude).argmin() + np.arange(60)
    inside = (east >= 0) & (east < 400)
    weights = network.weights(rows[inside], east[inside])
    assert weights[2].max() > 0
    far = network.weights(np.array([0, 399]), np.array([0, 399]))
    assert far.max() < weights.max()


def test_sparse_file_says_what_was_rendered(files, tmp_path):
    path = files["gridrad-v4.2"]
    assert read(path, "Altitude").tolist() == [*(0.5 * k for k in range(1, 15)), *range(8, 23)]
    longitude = read(path, "Longitude")
    assert (longitude > 180).all()
    assert (np.diff(longitude) > 0).all()
    assert read(path, "time")[0] == (
        np.datetime64("2011-04-27T20:00") - np.datetime64("2001-01-01")
    ) / np.timedelta64(1, "s")
    with netCDF4.Dataset(path) as file:
        assert file.Analysis_time == "2011-04-27 20:00:00Z"
        assert re.fullmatch(rb"K[A-Z]{3}\d{8}_\d{6}_V06_\d\d\.\d ", file["sweeps_merged"][0].tobytes())
    shuffled = write_scenes(tmp_path, format="gridrad-v4.2", scenes=1, shape=(96, 112), shuffle_index=True)[0]
    index, other = read(path, "index"), read(shuffled, "index")
    assert (np.diff(index) > 0).all()
    assert not (np.diff(other) > 0).all()
    order = np.argsort(other)
    for name in ("Reflectivity", "wDivergence"):
        np.testing.assert_array_equal(read(path, name), read(shuffled, name)[order])


def test_write_gridrad_sparse_gathers_a_dense_volume(tmp_path):
    rng = np.random.default_rng(0)
    dbz = rng.normal(20, 10, (3, 4, 5)).astype(np.float32)
    dbz[rng.random(dbz.shape) < 0.6] = np.nan
    looks = rng.integers(1, 9, dbz.shape)
    echoes = np.where(np.isfinite(dbz), looks, 0)
    axes = {
        "latitude": np.arange(4) / 48,
        "longitude": np.arange(5) / 48 - 90,
        "altitude_km": [1.0, 2.0, 3.0],
    }
    options = {"time": NOON, **axes, "fields": {"Reflectivity": dbz}, "nradobs": looks, "nradecho": echoes}
    for version, kind in (("v4_2", "f8"), ("v3_1", "f4")):
        for shuffle in (False, True):
            path = write_gridrad_sparse(tmp_path / "x.nc", version=version, shuffle_index=shuffle, **options)
            back = np.full(dbz.size, np.nan, np.float32)
            back[read(path, "index")] = read(path, "Reflectivity")
            np.testing.assert_array_equal(back.reshape(dbz.shape), dbz)
            np.testing.assert_array_equal(read(path, "wReflectivity"), echoes.ravel()[read(path, "index")])
            assert read(path, "Longitude").dtype == kind
            np.testing.assert_allclose(read(path, "Longitude")[0], 270.0)
    weights = {"Reflectivity": np.full(dbz.shape, 0.25)}
    path = write_gridrad_sparse(tmp_path / "x.nc", weights=weights, **options)
    assert set(read(path, "wReflectivity").tolist()) == {0.25}
    with pytest.raises(SchemaError, match=r"Nradobs: shape is \(2, 4, 5\); expected \(3, 4, 5\)"):
        write_gridrad_sparse(tmp_path / "y.nc", **(options | {"nradobs": looks[:2]}))
    with pytest.raises(SchemaError, match="version: got 'v5'; expected one of"):
        write_gridrad_sparse(tmp_path / "y.nc", version="v5", **options)
    with pytest.raises(SchemaError, match=r"fields: unknown \['dBZ'\]"):
        write_gridrad_sparse(tmp_path / "y.nc", **(options | {"fields": {"dBZ": dbz}}))
    assert not list(tmp_path.glob("y.nc*"))


def test_dense_file_holds_the_same_echo_as_a_volume(files, tmp_path):
    dense = read(files["gridrad-v4.1"], "ZH")
    assert dense.shape == (1, 29, 96, 112)
    run = make_run(format="gridrad-v4.1", scenes=1, shape=(96, 112))
    network = RadarNetwork(run.weather, run.latitude, run.longitude, np.array(run.format.altitudes))
    volume = render_radar(run.weather, run.times[0], network)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(dense)), volume.index)
    np.testing.assert_array_equal(dense.ravel()[volume.index], volume.fields["Reflectivity"])
    path = write_gridrad_dense(
        tmp_path / "d.nc", time=NOON, latitude=[1.0, 2.0], longitude=[-90.0, -89.0], altitude_km=[1.0],
        fields={"Reflectivity": np.array([[[1.0, np.nan], [3.0, 4.0]]])}, missing_value=-9999.0,
    )  # fmt: skip
    assert read(path, "ZH").ravel().tolist() == [1.0, -9999.0, 3.0, 4.0]


# Faults -------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoil(tmp_path):
    """Plant a fault in a fresh small file; gives (fault, values before, path)."""

    def make(fault, *, format="larc-goes", variable=None, shape=(300, 320), seed=0):
        path = write_scenes(tmp_path, format=format, scenes=1, shape=shape)[0]
        before = None if variable is None else read(path, variable)
        return plant_fault(path, fault, seed), before, path

    return make


@pytest.mark.parametrize("fault", ["truncated", "text", "empty"])
def test_fault_makes_a_file_unreadable(spoil, fault):
    planted, _, path = spoil(fault, shape=(64, 64))
    assert (planted.path, planted.fault, planted.variable) == (path, fault, None)
    with pytest.raises(OSError, match=r"HDF|Unknown file format|Errno"):
        read(path, "ir_brightness_temperature")
    size = path.stat().st_size
    assert (size == 0) == (fault == "empty")


def test_fault_takes_channels_away(spoil):
    _, _, path = spoil("no_visible", shape=(64, 64))
    with netCDF4.Dataset(path) as file:
        assert "visible_reflectance" not in file.variables
        assert file["ir_brightness_temperature"].scale_factor == np.float32(0.01)
        assert file["ir_brightness_temperature"].ncattrs()[0] == "_FillValue"
    _, _, path = spoil("no_channels", shape=(64, 64))
    with netCDF4.Dataset(path) as file:
        assert set(file.variables) == {"time", "latitude", "longitude", "scan_time", "ot_id_number"}
    _, _, path = spoil("no_channels", format="gridrad-v4.2", shape=(64, 64))
    with netCDF4.Dataset(path) as file:
        assert not {"Reflectivity", "wReflectivity"} & set(file.variables)
        assert "SpectrumWidth" in file.variables
    with pytest.raises(SchemaError, match="no visible_reflectance to drop"):
        plant_fault(path, "no_visible")


@pytest.mark.parametrize("name", list(FORMATS))
def test_fault_shifts_the_time_inside(spoil, name):
    _, before, path = spoil("wrong_time", format=name, variable="time", shape=(32, 32))
    unit = 24 if name == "larc-goes" else 1 / 3600
    np.testing.assert_allclose((read(path, "time") - before) * unit, 3.0, atol=1e-6)
    with netCDF4.Dataset(path) as file:
        if name == "larc-goes":
            assert file["time"].date_time_stamp == "2021-07-05T20:50:17Z"
        elif name != "gridrad-v4.1":
            stamp = {"gridrad-v4.2": "2011-04-27 23:00:00Z", "gridrad-v3.1": "2011-04-27 15:00:00Z"}[name]
            assert file.Analysis_time == stamp


@pytest.mark.parametrize(
    ("name", "variable"), [("larc-goes", "ir_brightness_temperature"), ("gridrad-v4.1", "ZH")]
)
def test_fault_small_keeps_the_first_corner(spoil, name, variable):
    _, before, path = spoil("small", format=name, variable=variable, shape=(140, 150))
    np.testing.assert_array_equal(read(path, variable), before[..., :100, :120])


def test_fault_small_renumbers_a_sparse_file(tmp_path):
    options = {"format": "gridrad-v4.2", "scenes": 1, "shape": (200, 220), "seed": 4}
    whole, path = (write_scenes(tmp_path / name, **options)[0] for name in ("whole", "small"))
    plant_fault(path, "small")
    small = {name: read(path, name) for name in ("index", "Reflectivity", "Nradobs")}
    dense = np.full((29, 200, 220), np.nan, np.float32)
    dense.ravel()[read(whole, "index")] = read(whole, "Reflectivity")
    cut = np.full((29, 100, 120), np.nan, np.float32)
    cut.ravel()[small["index"]] = small["Reflectivity"]
    np.testing.assert_array_equal(cut, dense[:, :100, :120])
    assert np.isfinite(cut).any()
    np.testing.assert_array_equal(small["Nradobs"], read(whole, "Nradobs")[:, :100, :120])


@pytest.mark.parametrize(
    ("fault", "code"),
    [("fill_block", 65535), ("unphysical_block", 9000), ("dead_lines", 0), ("constant_block", 27315)],
)
def test_fault_in_integers_changes_its_window_only(spoil, fault, code):
    planted, before, path = spoil(fault, variable="ir_brightness_temperature")
    after = read(path, "ir_brightness_temperature")
    window = np.zeros(after.shape, bool)
    window[0, slice(*planted.rows), slice(*planted.columns)] = True
    assert (planted.variable, planted.value, planted.pixels) == (
        "ir_brightness_temperature",
        code,
        window.sum(),
    )
    assert (after[window] == code).all()
    np.testing.assert_array_equal(after[~window], before[~window])
    if fault == "constant_block":
        assert planted.rows == (0, 256)
        assert planted.columns == (0, 256), "a whole cell of the patch grid"
    if fault == "dead_lines":
        assert planted.columns == (0, 320)


FLOAT_FAULTS = {
    "nan_block": np.nan, "inf_block": np.inf, "fill_block": np.nan, "unphysical_block": 200.0, "huge_block": 9.96921e36,
    "minus_9999_block": -9999.0, "constant_block": 30.0,
}  # fmt: skip


@pytest.mark.parametrize("name", ["gridrad-v4.2", "gridrad-v4.1"])
def test_fault_in_floats_changes_its_window_only(tmp_path, name):
    variable = "ZH" if name == "gridrad-v4.1" else "Reflectivity"
    clean = write_scenes(tmp_path / "clean", format=name, scenes=1, shape=(128, 140))[0]
    before = read(clean, variable)
    if name == "gridrad-v4.1":
        rows, columns = (np.broadcast_to(a, before.shape) for a in np.indices((128, 140)))
    else:
        rows, columns = np.divmod(read(clean, "index") % (128 * 140), 140)
    for seed, (fault, value) in enumerate(FLOAT_FAULTS.items()):
        path = tmp_path / f"{fault}.nc"
        path.write_bytes(clean.read_bytes())
        planted = plant_fault(path, fault, seed)
        after = read(path, variable)
        inside = (rows >= planted.rows[0]) & (rows < planted.rows[1])
        inside &= (columns >= planted.columns[0]) & (columns < planted.columns[1])
        assert inside.sum() == planted.pixels > 0
        np.testing.assert_allclose(after[inside], value, rtol=1e-5)
        np.testing.assert_array_equal(after[~inside], before[~inside])
    path.write_bytes(clean.read_bytes())
    planted = plant_fault(path, "dead_lines", 1)
    lost = read(path, planted.variable)[..., slice(*planted.rows), :]
    assert np.isnan(lost).all() if name == "gridrad-v4.1" else not lost.any()


@pytest.mark.parametrize("fault", ["nan_block", "inf_block", "huge_block", "minus_9999_block"])
def test_fault_of_floats_is_refused_in_integers(spoil, fault):
    with pytest.raises(
        SchemaError, match=f"{fault} needs a float variable, but ir_brightness_temperature is uint16"
    ):
        spoil(fault, shape=(64, 64))


def test_faults_are_spread_over_the_scenes_and_told(tmp_path):
    faults = ["truncated", "fill_block", "no_visible"]
    options = {"scenes": 5, "shape": (64, 72), "seed": 2}
    paths = write_scenes(tmp_path / "a", faults=faults, **options)
    clean = write_scenes(tmp_path / "b", **options)
    truth = read_truth(tmp_path / "a")
    assert [s["path"] for s in truth["scenes"]] == [p.relative_to(tmp_path / "a").as_posix() for p in paths]
    told = [s["fault"]["fault"] if s["fault"] else None for s in truth["scenes"]]
    assert sorted(f for f in told if f) == sorted(faults)
    for fault, path, good in zip(told, paths, clean, strict=True):
        assert (digest(path) == digest(good)) == (fault is None)
    block = next(s["fault"] for s in truth["scenes"] if s["fault"] and s["fault"]["fault"] == "fill_block")
    assert block["pixels"] == np.prod([b - a for a, b in (block["rows"], block["columns"])])
    assert all(FAULTS.values())


# Requests -----------------------------------------------------------------------------------------------------


def test_iter_scenes_writes_one_file_at_a_time(tmp_path):
    scenes = iter_scenes(tmp_path, scenes=3, shape=(16, 16))
    first = next(scenes)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [first]
    assert len(list(scenes)) == 2
    assert (tmp_path / "truth.json").exists()


def test_interval_is_read_from_text_and_timedelta():
    assert parse_interval("10min") == np.timedelta64(600, "s")
    assert parse_interval(" 6 H ") == np.timedelta64(21600, "s")
    assert parse_interval(np.timedelta64(2, "D")) == np.timedelta64(172800, "s")
    for bad, message in (("soon", "got 'soon'; expected a number"), ("0s", "expected more than 0 s")):
        with pytest.raises(SchemaError, match=message):
            parse_interval(bad)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"format": "grib"}, "format: got 'grib'; expected one of"),
        ({"scenes": 0}, "scenes: got 0; expected 1 or more"),
        ({"shape": (1, 5)}, r"shape: got \(1, 5\); expected at least 2 rows"),
        ({"shape": (20000, 50)}, "leaves the map"),
        ({"interval": "90s"}, "file names tell whole minutes"),
        ({"faults": ["flood"]}, r"faults: got \['flood'\]; expected some of"),
        ({"faults": ["empty"] * 7}, "faults: 7 for 6 scenes; expected at most one a scene"),
        ({"night_visible": "dim"}, "night_visible: got 'dim'; expected absent, fill or zero"),
    ],
)
def test_request_that_makes_no_sense_is_refused_before_writing(tmp_path, request_, message):
    with pytest.raises(SchemaError, match=message):
        iter_scenes(tmp_path / "out", **request_)
    assert not (tmp_path / "out").exists()


def test_plant_fault_refuses_an_unknown_fault(tmp_path):
    with pytest.raises(SchemaError, match="faults: got 'flood'; expected some of"):
        plant_fault(tmp_path / "x.nc", "flood")
