"""Cubes of patches: pixels with their exact places, the flat view, states of radar bins."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib import use
from query_stores import found, make_embeddings
from small_data import make_store

from gridrad_cube import info, query
from gridrad_cube.query.pixels import _continuous
from gridrad_cube.schema import CHANNELS, SchemaError, default_reject
from gridrad_cube.store import PatchReader, open_cube, open_packed

use("agg")
_SHARED = make_embeddings()


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("cube"), scenes=3, shape=(90, 150))


def test_crop_has_exact_pixel_positions(cube):
    dataset = open_cube(cube)
    one = dataset.gridrad.crop(1)
    grid = xr.open_zarr(cube, group=f"grids/{dataset.grid.values[1]!s}", chunks=None, consolidated=False)
    assert one.ir_brightness_temperature.dims == ("y", "x")
    np.testing.assert_array_equal(one.latitude, grid.latitude)
    np.testing.assert_array_equal(one.longitude, grid.longitude)
    np.testing.assert_array_equal(
        one.ir_brightness_temperature, dataset.ir_brightness_temperature[1, :90, :150]
    )
    np.testing.assert_array_equal(one.patch_latitude, dataset.latitude[1])
    assert one.scene_y.values.tolist() == list(range(90))


def test_crops_and_patches_without_padding_can_be_drawn_and_selected(cube):
    dataset = open_cube(cube)
    one = dataset.gridrad.crop(1)
    field = one.ir_brightness_temperature
    here = field.sel(
        latitude=float(one.latitude[80]) + 1e-4, longitude=float(one.longitude[140]), method="nearest"
    )
    np.testing.assert_array_equal(here, dataset.ir_brightness_temperature[1, 80, 140])
    mesh = field.plot(x="longitude", y="latitude")  # refuses positions that are NaN
    assert mesh.get_array().size == 90 * 150
    edge = dataset.gridrad.patch(1, 2, 4)
    assert dict(edge.ir_brightness_temperature.sizes) == {"y": 26, "x": 22}
    wide = dataset.isel(crop=[0]).gridrad.grid(by="degree")
    assert np.isfinite(wide.latitude).all()


def test_longitudes_of_a_crop_across_the_date_line_continue():
    assert _continuous(np.array([179.0, 179.5, -180.0, -179.5])).tolist() == [179.0, 179.5, 180.0, 180.5]
    assert _continuous(np.array([[-1.0, -0.5], [0.0, np.nan]]))[0].tolist() == [-1.0, -0.5]


def test_selections_are_described_by_their_own_patches(cube, tmp_path):
    dataset = open_cube(cube)
    ir = "ir_brightness_temperature"
    flags, mean = (dataset[f"{ir}_{n}"].values for n in ("flags", "mean"))
    clean = (flags & int(default_reject("infrared"))) == 0
    masked = dataset.where(dataset.time > dataset.time.values[0]).gridrad.describe()
    assert masked["statistics"][ir].startswith(f"{clean[1:].sum()} clean patches, mean ")
    weight = dataset[f"{ir}_valid_fraction"].values[1:][clean[1:]]
    expected = np.average(mean[1:][clean[1:]].astype(float), weights=weight)
    assert f"mean {expected:.4g}, " in masked["statistics"][ir]
    part = dataset.gridrad.within(time=dataset.time.values[1], channel=ir)
    part.to_zarr(tmp_path / "part.zarr", zarr_format=3)
    facts = info.inspect_target(tmp_path / "part.zarr")
    assert facts["samples"] == f"{part.sizes['patch']} patch, from 1 crop"
    assert facts["statistics"][ir].startswith(f"{clean[1].sum()} clean patches")
    part.to_netcdf(tmp_path / "part.nc")
    assert info.inspect_target(tmp_path / "part.nc")["statistics"] == facts["statistics"]
    half = dataset.astype("float16").gridrad.describe()["statistics"]
    assert "inf" not in " ".join(half.values())


def test_patch_is_part_of_its_crop(cube):
    dataset = open_cube(cube)
    crop, patch = dataset.gridrad.crop(2), dataset.gridrad.patch(2, 1, 3)
    part = crop.isel(y=slice(32, 64), x=slice(96, 128))
    np.testing.assert_array_equal(patch.visible_reflectance, part.visible_reflectance)
    np.testing.assert_array_equal(patch.latitude, part.latitude)
    np.testing.assert_array_equal(patch.longitude, part.longitude)
    np.testing.assert_allclose(float(patch.patch_latitude), float(patch.latitude.mean()))
    np.testing.assert_allclose(float(patch.patch_longitude), float(patch.longitude.mean()))
    assert (int(patch.crop), int(patch.row), int(patch.col)) == (2, 1, 3)
    np.testing.assert_allclose(
        float(patch.ir_brightness_temperature_mean), patch.ir_brightness_temperature.mean(), rtol=1e-6
    )


def test_patches_is_the_flat_lazy_view(cube):
    dataset = open_cube(cube)
    flat = dataset.gridrad.patches()
    assert flat.ir_brightness_temperature.dims == ("patch", "y", "x")
    assert flat.sizes == {"patch": 3 * 3 * 5, "y": 32, "x": 32}
    assert not isinstance(flat.ir_brightness_temperature.variable._data, np.ndarray)
    whole = dataset.ir_brightness_temperature.values
    for i in (0, 17, 44):
        c, r, q = (int(flat[d][i]) for d in ("crop", "row", "col"))
        expected = whole[c, 32 * r : 32 * r + 32, 32 * q : 32 * q + 32]
        np.testing.assert_array_equal(flat.ir_brightness_temperature[i], expected)
        np.testing.assert_array_equal(
            flat.ir_brightness_temperature[i, 4:9, [1, 5]], expected[4:9][:, [1, 5]]
        )
        assert float(flat.ir_brightness_temperature_mean[i]) == float(
            dataset.ir_brightness_temperature_mean[c, r, q]
        )
        assert int(flat.y_start[i]) == 32 * r
    some = flat.isel(patch=[44, 3])
    assert some.ir_brightness_temperature.values.shape == (2, 32, 32)
    assert flat.ir_brightness_temperature[0:0].shape == (0, 32, 32)
    one = dataset.gridrad.patches(channel="visible_reflectance", reject=None)
    assert "ir_brightness_temperature" not in one
    assert "visible_reflectance_mean" in one


def test_patches_reads_only_what_is_asked_for(cube, monkeypatch):
    dataset = open_cube(cube)
    flat = dataset.gridrad.patches()
    calls = []
    read = PatchReader.read_window
    monkeypatch.setattr(PatchReader, "read_window", lambda self, v, k: calls.append(k) or read(self, v, k))
    flat.ir_brightness_temperature[7].load()
    assert calls == [(0, slice(32, 64, 1), slice(64, 96, 1))]


def test_cube_answers_at_and_within(cube):
    dataset = open_cube(cube)
    lat, lon = float(dataset.latitude[1, 1, 2]), float(dataset.longitude[1, 1, 2])
    one = dataset.gridrad.at(dataset.time.values[1], lat + 0.05, lon)
    assert (int(one.crop), int(one.row), int(one.col)) == (1, 1, 2)
    assert one.ir_brightness_temperature.shape == (32, 32)
    box = dataset.gridrad.within((lon - 0.1, lat - 0.1, lon + 0.1, lat + 0.1), reject=())
    assert found(box, ("crop", "row", "col")) == [(0, 1, 2), (1, 1, 2), (2, 1, 2)]
    with pytest.raises(SchemaError, match="a cube of patches has no embeddings"):
        query.search(dataset, (0, 0, 0))
    with pytest.raises(AttributeError, match=r".gridrad.search: this dataset is not a store of embeddings"):
        dataset.gridrad.search((0, 0, 0))
    with pytest.raises(SchemaError, match="no channel 'rain'"):
        dataset.gridrad.patches(channel="rain")


def test_crop_refuses(cube):
    dataset = open_cube(cube)
    with pytest.raises(SchemaError, match="no crop 3; the store has 0 to 2"):
        dataset.gridrad.crop(3)
    with pytest.raises(SchemaError, match="no row 9"):
        dataset.gridrad.patch(0, 9, 0)
    with pytest.raises(SchemaError, match="embeddings have no pixels"):
        query.crop(_SHARED, 0)
    lost = dataset.copy()
    lost.encoding = {}
    with pytest.raises(SchemaError, match="does not know its store"):
        lost.gridrad.crop(0)
    strange = dataset.assign_coords(grid=("crop", np.array(["../x"] * 3)))
    with pytest.raises(SchemaError, match="is not the name of a grid"):
        strange.gridrad.crop(0)
    with pytest.raises(SchemaError, match="no grid 'gone' under grids/"):
        dataset.assign_coords(grid=("crop", np.array(["gone"] * 3))).gridrad.crop(0)


def make_radar(codes):
    """A cube of one radar channel in memory, packed as a store holds it."""
    channel = CHANNELS["reflectivity"]
    attributes = channel.attributes() | channel.packing.to_attributes()
    return xr.Dataset(
        {"reflectivity": (("crop", "altitude", "y", "x"), codes, attributes)},
        coords={"altitude": ("altitude", np.arange(codes.shape[1], dtype=float))},
    )


def test_reflectivity_masks_what_is_no_echo():
    codes = np.array([0, 1, 2, 3, 16, 14900], np.uint16).reshape(1, 1, 1, 6)
    packed = make_radar(codes)
    for dataset in (packed, xr.decode_cf(packed)):
        plain = dataset.gridrad.reflectivity()
        assert np.isnan(plain.values.ravel()).tolist() == [True, True, True, True, False, False]
        np.testing.assert_allclose(plain.values.ravel()[4:], [-98.85, 49.99], atol=1e-4)
        filled = dataset.gridrad.reflectivity(no_echo=-30, low_confidence=-40)
        np.testing.assert_array_equal(
            filled.values.ravel()[:4], np.array([np.nan, -30, -40, -40], np.float32)
        )
        assert filled.dtype == np.float32
        assert filled.dims == ("crop", "altitude", "y", "x")
        np.testing.assert_array_equal(filled[0, 0, 0, 1:3], [-30, -40])
        assert "no_echo_code" not in filled.attrs
    with pytest.raises(SchemaError, match="the dataset has no rain; expected some of"):
        packed.gridrad.reflectivity(channel="rain")


def test_reflectivity_of_a_store_equals_its_codes(tmp_path):
    store = make_store(tmp_path, scenes=1, shape=(64, 64), format="gridrad-v4.2")
    dataset, packed = open_cube(store), open_packed(store)
    name = next(n for n in ("reflectivity", "reflectivity_column_maximum") if n in dataset)
    values = dataset.gridrad.reflectivity(no_echo=-30, low_confidence=-40)
    assert values.name == name
    codes = packed[name].values
    assert (codes == 1).any()
    assert (values.values[codes == 1] == -30).all()
    assert np.isnan(values.values[codes == 0]).all()
    assert (values.values[(codes == 2) | (codes == 3)] == -40).all()
    np.testing.assert_array_equal(values.values[codes >= 16], dataset[name].values[codes >= 16])
    assert "altitude" not in values.dims or values.dims[1] == "altitude"
