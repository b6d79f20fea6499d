"""What an embedding store says of itself: network, inputs, source, and the ``geoemb:`` convention.

Network and inputs come as plain values.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from typing import Any

from gridrad_cube.store import Files

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


def describe_source(info: Mapping[str, Any], source: str, out: str | os.PathLike[str]) -> dict[str, Any]:
    """Attributes about the store that was embedded.

    Parameters
    ----------
    info
        What that store says of itself.
    source
        Its path or URL. The embeddings name it relative to theirs where both lie on this disk.
    out
        Path or URL of the embeddings.
    """
    there, here = Files(source), Files(out)
    name = os.path.basename(there.root) if there.local else there.root
    if there.local and here.local:
        name = os.path.relpath(there.root, os.path.dirname(here.root))
    thresholds = info.get("thresholds")
    text = json.dumps(thresholds, sort_keys=True)
    below = {key: info.get(key) for key in _OF_LEVEL_256} if info.get("kind") == "embeddings" else None
    return {
        "source": name,
        "source_identity": info.get("identity"),
        "thresholds": thresholds,
        "thresholds_hash": hashlib.sha256(text.encode()).hexdigest()[:32],
        "embedded_from": below,
        "software": {package: importlib.metadata.version(package) for package in _SOFTWARE},
    }


def geoemb(
    request: Mapping[str, Any], info: Mapping[str, Any], *, features: int, spacing_km: float | None
) -> dict[str, Any]:
    """Attributes of the ``geoemb:`` convention, version 1.

    Parameters
    ----------
    request
        Of the embedding store; see `gridrad_cube.store.EmbeddingWriter`.
    info
        What the store that was embedded says of itself.
    """
    layout: dict[str, Any] = {"layout_type": "irregular", "chip_size": request["crop"]}
    if request["level"] == "256":
        patch, step = request["patch"], request["stride"]
        layout = {"layout_type": "regular_grid", "chip_size": [patch, patch], "stride": [step, step]}
    return {
        "zarr_conventions": [_CONVENTION],
        "geoemb:type": "chip",
        "geoemb:dimensions": features,
        "geoemb:model": f"urn:gridrad-cube:checkpoint:{request['checkpoint']}",
        "geoemb:source_data": [f"urn:gridrad-cube:store:{info.get('identity')}"],
        "geoemb:data_type": request["dtype"],
        "geoemb:chip_layout": layout,
        "geoemb:build_version": importlib.metadata.version("gridrad-cube"),
        **({"geoemb:gsd": round(1000 * spacing_km, 3)} if spacing_km else {}),
    }
