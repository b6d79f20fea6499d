"""What a network attends to: attention of the last block in patches, or in grids of patch embeddings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube.embedding.inputs import GridInput, Normalize, PatchInput, open_input
from gridrad_cube.embedding.network import Network
from gridrad_cube.geometry import reverse
from gridrad_cube.launch import World, choose_device
from gridrad_cube.query import collect
from gridrad_cube.schema import SchemaError

#: Samples that go through the network at once.
_TOGETHER = 64


def attention(
    store: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    samples: xr.Dataset | Sequence[Any],
    *,
    channels: str | Sequence[str] | None = None,
    key: str = "teacher",
    normalize: Normalize = "auto",
    device: str = "auto",
) -> xr.Dataset:
    """Return the attention of the class token in the last block, for each head, in patches or in grids of
    crops.

    Parameters
    ----------
    store
        Input of the network: a cube of patches for a checkpoint of level 256, an embedding store of level 256
        for one of level 2k.
    checkpoint
        Path of a checkpoint.
    samples
        ``(crop, row, col)`` of patches, or a crop's number for all of its patches (level 2k: for its grid); or an
        answer of a query, for its samples.
    channels, key, normalize, device
        As in `gridrad_cube.embedding.embed`; one map for each channel.

    Returns
    -------
    ``attention(sample, head, token_y, token_x)``, at level 2k ``(sample, head, row, col)``: float32, shares of the
    attention of the class token, in the order of the store. The rest to 1 is the attention of the class token
    to itself. Samples without pixels are NaN. Coordinates are ``crop``, ``channel`` (``row``, ``col``), time,
    position, source file and pixel window of each sample.

    Raises
    ------
    SchemaError
        If a sample is not in the store, or the checkpoint does not fit.
    """
    network = Network(checkpoint, key=key, device=choose_device(device, World()))
    inputs = open_input(os.fspath(store), network.trained, channels=channels, normalize=normalize)
    index = _index(inputs, samples)
    labels, maps = list(inputs.labels), _maps(inputs, network, index)
    dims = ("token_y", "token_x") if inputs.level == "256" else ("row", "col")
    each = {d: np.repeat(i, len(labels)) for d, i in index.items()}
    attributes = {"long_name": "attention of the class token in the last block", "units": "1"}
    result = _coordinates(inputs, each).assign(attention=(("sample", "head", *dims), maps, attributes))
    result = result.assign_coords(channel=("sample", np.array(labels * len(index["crop"]), object)))
    result.attrs = {
        "Conventions": "CF-1.11", "title": "Attention maps", "checkpoint": network.fingerprint,
        "level": inputs.level, "source_identity": str(inputs.info.get("identity")),
    }  # fmt: skip
    return result


def _index(inputs: PatchInput | GridInput, samples: xr.Dataset | Sequence[Any]) -> dict[str, np.ndarray]:
    """Return the positions of the samples asked for along crop (and row and col at level 256)."""
    dims = ("crop", "row", "col") if isinstance(inputs, PatchInput) else ("crop",)
    sizes = (inputs.crops, *inputs.cells)[: len(dims)]
    if isinstance(samples, xr.Dataset):
        missing = [d for d in dims if d not in samples.variables]
        if missing:
            raise SchemaError(f"attention: the answer has no {missing}; expected samples of {inputs.store}")
        columns = [np.ravel(samples[d].values).tolist() for d in dims]
        asked = list(dict.fromkeys(zip(*columns, strict=True)))
    else:
        asked = []
        for sample in samples:
            one = (sample,) if isinstance(sample, (int, np.integer)) else tuple(sample)
            whole = len(one) == 1 and len(dims) == 3
            asked += [(*one, *cell) for cell in np.ndindex(*inputs.cells)] if whole else [one]
    for one in asked:
        if len(one) != len(sizes) or not all(0 <= i < n for i, n in zip(one, sizes, strict=True)):
            names = ", ".join(f"{d} 0 to {n - 1}" for d, n in zip(dims, sizes, strict=True))
            raise SchemaError(f"attention: no sample {one} in {inputs.store}; it has {names}")
    if not asked:
        raise SchemaError("attention: no samples; expected (crop, row, col), or numbers of crops")
    return dict(zip(dims, np.array(asked, np.int64).T, strict=True))


def _maps(inputs: PatchInput | GridInput, network: Network, index: dict[str, np.ndarray]) -> np.ndarray:
    """Return the maps (samples x labels, heads, tokens down, tokens across), a crop at a time."""
    shape = (network.backbone.architecture.heads, *inputs.tokens)
    crops, *cells = index.values()
    out = np.full((len(crops), len(inputs.labels), *shape), np.nan, np.float32)
    for crop in np.unique(crops).tolist():
        here = {i: (slice(None), *(c[i] for c in cells)) for i in np.flatnonzero(crops == crop).tolist()}
        wanted, found = (
            np.zeros((1, *inputs.shape), bool),
            np.full((*inputs.shape, *shape), np.nan, np.float32),
        )
        for at in here.values():
            wanted[0][at] = True
        flips = inputs.flips(range(crop, crop + 1))
        for place, batch in inputs.batches(range(crop, crop + 1), _TOGETHER, wanted):
            maps = network.attend(*batch)
            found[place[1:]] = reverse(
                maps, flips.repeat(len(maps), axis=0)
            )  # in the order of the store again
        for i, at in here.items():
            out[i] = found[at]
    return out.reshape(-1, *shape)


def _coordinates(inputs: PatchInput | GridInput, index: dict[str, np.ndarray]) -> xr.Dataset:
    """Return when, where and of which file the samples are."""
    dataset = inputs.dataset
    if isinstance(inputs, GridInput):  # one position for each crop, as in a store of level 2k
        blank = np.zeros((dataset.sizes["crop"], 1), np.float32)
        dataset = dataset.drop_vars([n for n in dataset.variables if "channel" in dataset[n].dims])
        dataset = dataset.assign(embedding=(("crop", "feature"), blank))
    found = collect(dataset, index, "sample")
    return found.drop_vars(
        [n for n, v in found.variables.items() if "sample" not in v.dims or n in found.data_vars]
    )
