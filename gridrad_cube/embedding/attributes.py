"""What an embedding store says of itself: network, inputs, source, and the ``geoemb:`` convention."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gridrad_cube.embedding.grids import GridInput, GridsOfPatches
from gridrad_cube.embedding.network import Network
from gridrad_cube.embedding.output import SCALE, Output
from gridrad_cube.embedding.patches import PatchInput
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.store import Files

logger = logging.getLogger(__name__)

#: Share by which the pixel spacing of a store may differ from that of training without a warning.
SPACING_TOLERANCE = 0.1

#: Registration of the ``geoemb:`` convention, https://github.com/geo-embeddings/embeddings-zarr-convention
_CONVENTION = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}


_OF_LEVEL_256 = ("checkpoint", "pool", "source", "source_identity")
_SOFTWARE = ("gridrad-cube", "numpy", "torch", "xarray", "zarr")


def label_arrays(source: PatchInput | GridInput) -> dict[str, np.ndarray]:
    """Coordinates on ``channel``."""
    labels = source.labels
    variables = ["+".join(dict.fromkeys(m.split("@")[0] for m in members)) for members in labels.values()]
    return {
        "channel": np.array(list(labels), object),
        "variable": np.array(variables, object),
        "altitude_km": np.array([_altitude(members) for members in labels.values()], np.float64),
    }


def _altitude(members: Sequence[str]) -> float:
    """Altitude of a label in km; NaN where it has none or is made of several channels."""
    height = members[0].partition("@")[2].removesuffix("km")
    return float(height) if height and len(members) == 1 else float("nan")


def describe(
    source: PatchInput | GridInput, network: Network, output: Output, request: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``gridrad_cube`` attributes: which network, which inputs, how."""
    info = source.info
    thresholds = info.get("thresholds")
    return {
        **request,
        "kind": "embeddings",
        "channels": source.labels,
        "channel_mode": "stack" if network.stacked else "each",
        "features": network.features,
        "checkpoint_file": os.path.basename(network.path),
        "model": network.backbone.config(),
        "view": dict(network.view),
        "source": _reference(source.store, output.files),
        "source_identity": info.get("identity"),
        "thresholds": thresholds,
        "thresholds_hash": _hash(thresholds),
        "embedded_from": _level_256(source, output.files) if source.level == "2k" else None,
        "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
    }


def _level_256(source: PatchInput | GridInput, out: Files) -> dict[str, Any]:
    """What the patch embeddings were made from, stored or not."""
    found = {name: source.info.get(name) for name in _OF_LEVEL_256}
    return found if found["source"] else found | {"source": _reference(source.store, out)}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _reference(store: str, out: Files) -> str:
    """The source as the output names it: relative where both lie on this disk, a URL where it is remote."""
    source = Files(store)
    if source.local and out.local:
        return os.path.relpath(source.root, os.path.dirname(out.root))
    return os.path.basename(source.root) if source.local else source.root


def spacing_km(source: PatchInput | GridInput, network: Network) -> float | None:
    """Distance of neighbouring pixels in the first crops, km; warns where training had another."""
    if isinstance(source, GridsOfPatches):
        return spacing_km(source.patches, source.patches.network)
    if not isinstance(source, PatchInput):
        return source.info.get("pixel_spacing_km")
    place = [source.dataset[n][:16].values for n in ("latitude", "longitude")]
    found = None
    for axis in (1, 2):
        near, far = ([np.delete(p, end, axis) for p in place] for end in (-1, 0))
        steps = great_circle_km(near[0], near[1], far[0], far[1]) / source.patch
        if found is None and np.isfinite(steps).any():
            found = float(np.nanmedian(steps))
    trained = network.view.get("pixel_spacing_km")
    if found and trained and abs(found / trained - 1) > SPACING_TOLERANCE:
        logger.warning(
            "%s has pixels of %.3g km, but %s was trained on pixels of %.3g km: what it learned is of another scale",
            source.store, found, network.path, trained,
        )  # fmt: skip
    return found


def geoemb(
    source: PatchInput | GridInput, network: Network, *, dtype: str, spacing_km: float | None
) -> dict[str, Any]:
    """Attributes of the ``geoemb:`` convention, version 1."""
    patch, crop = int(source.info["patch"]), [int(e) for e in source.info["crop"]]
    layout: dict[str, Any] = {"layout_type": "irregular", "chip_size": crop}
    if isinstance(source, PatchInput):
        step = source.lattice.stride
        layout = {"layout_type": "regular_grid", "chip_size": [patch, patch], "stride": [step, step]}
    return {
        "zarr_conventions": [_CONVENTION],
        "geoemb:type": "chip",
        "geoemb:dimensions": network.features,
        "geoemb:model": f"urn:gridrad-cube:checkpoint:{network.fingerprint}",
        "geoemb:source_data": [f"urn:gridrad-cube:store:{source.info.get('identity')}"],
        "geoemb:data_type": dtype,
        **(
            {"geoemb:quantization": {"method": "linear", "scale": {"array": SCALE}}}
            if dtype == "int8"
            else {}
        ),
        "geoemb:chip_layout": layout,
        "geoemb:build_version": importlib.metadata.version("gridrad-cube"),
        **({"geoemb:gsd": round(1000 * spacing_km, 3)} if spacing_km else {}),
    }
