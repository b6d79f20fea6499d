"""Polygons in longitude and latitude: which points lie inside, across the date line and around the poles."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.geometry import wrap_longitude
from gridrad_cube.schema import SchemaError

#: Corners of a ring, (corners, 2): longitude and latitude in degrees, longitudes without jumps.
Ring = npt.NDArray[np.float64]


def as_rings(polygon: Any) -> list[Ring]:
    """Rings of a polygon.

    Parameters
    ----------
    polygon
        Corners ``[(longitude, latitude), ...]``; GeoJSON as a dict or as text (Polygon, MultiPolygon, a Feature
        or a collection of them); or anything with ``__geo_interface__``, such as a shape of shapely.

    Raises
    ------
    SchemaError
        If it is none of these.
    """
    if isinstance(polygon, str):
        try:
            polygon = json.loads(polygon)
        except ValueError as error:
            raise SchemaError(f"polygon: the text is no GeoJSON ({error})") from None
    polygon = getattr(polygon, "__geo_interface__", polygon)
    rings = _geojson(polygon) if isinstance(polygon, Mapping) else [polygon]
    return [_ring(ring) for ring in rings]


def _geojson(shape: Mapping[str, Any]) -> list[Any]:
    kind = shape.get("type")
    if kind == "Feature":
        return _geojson(shape.get("geometry") or {})
    if kind in ("FeatureCollection", "GeometryCollection"):
        members = shape.get("features" if kind == "FeatureCollection" else "geometries", [])
        return [ring for member in members for ring in _geojson(member)]
    if kind == "Polygon":
        return list(shape["coordinates"])
    if kind == "MultiPolygon":
        return [ring for part in shape["coordinates"] for ring in part]
    raise SchemaError(f"polygon: got GeoJSON of type {kind!r}; expected Polygon or MultiPolygon")


def _ring(corners: Sequence[Sequence[float]]) -> Ring:
    try:
        ring = np.array([corner[:2] for corner in corners], np.float64)
    except (TypeError, ValueError, IndexError):
        ring = np.empty((0, 2))
    if ring.ndim != 2 or len(np.unique(ring, axis=0)) < 3 or not (np.abs(ring) <= (360, 90)).all():
        raise SchemaError(
            f"polygon: got a ring of corners {corners!r:.120}; expected three or more (longitude, latitude) in degrees"
        )
    steps = np.diff(ring[:, 0], append=ring[0, 0])
    long = (np.abs(steps) > 180) & (np.abs(steps) < 360)
    steps[long] = wrap_longitude(steps[long])  # across the date line, as nothing else is meant
    longitude = ring[0, 0] + np.concatenate([[0.0], np.cumsum(steps)])
    latitude = np.append(ring[:, 1], ring[0, 1])
    if abs(longitude[-1] - longitude[0]) > 180:  # once around the Earth: closed over the nearer pole
        pole = np.copysign(91.0, latitude.mean())  # beyond it, so that the pole itself lies inside
        longitude = np.concatenate([longitude, longitude[[-1, 0, 0]]])
        latitude = np.concatenate([latitude, [pole, pole, latitude[0]]])
    return np.stack([longitude, latitude], axis=1)


def in_polygon(
    latitude: npt.NDArray[np.float64], longitude: npt.NDArray[np.float64], rings: Sequence[Ring]
) -> npt.NDArray[np.bool_]:
    """Which points lie inside: in an odd number of rings, so that an inner ring is a hole.

    Edges run straight in longitude and latitude. A point on an edge may fall to either side.
    """
    out = np.zeros(latitude.shape, bool)
    for ring in rings:
        west, east = ring[:, 0].min(), ring[:, 0].max()
        at = west + (longitude - west) % 360.0
        near = np.nonzero((at <= east) & (latitude >= ring[:, 1].min()) & (latitude <= ring[:, 1].max()))
        x, y = at[near], latitude[near]
        inside = np.zeros(x.shape, bool)
        for (x1, y1), (x2, y2) in itertools.pairwise(ring):
            if y1 != y2:
                crosses = (y1 > y) != (y2 > y)
                inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
        out[near] ^= inside
    return out
