"""What a network looks at: attention of the last block, of patches or crops that one asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube.embedding.grids import GridInput
from gridrad_cube.embedding.patches import Normalize, PatchInput
from gridrad_cube.embedding.work import Work
from gridrad_cube.query.samples import collect
from gridrad_cube.schema import SchemaError
from gridrad_cube.store import Files


def attention(
    store: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    samples: xr.Dataset | Sequence[Any],
    out: str | os.PathLike[str] | None = None,
    *,
    channels: str | Sequence[str] | None = None,
    key: str = "teacher",
    device: str = "auto",
    normalize: Normalize = "auto",
) -> xr.Dataset:
    """Map what the class token of the last block attends to, head by head, in patches or in grids of crops.

    Parameters
    ----------
    store
        What the network reads: a cube of patches for a checkpoint of level 256, an embedding store of level 256
        for one of level 2k.
    samples
        ``(crop, row, col)`` of patches, or a crop's number for all of its patches (level 2k: for its grid); or an
        answer of a query, for its samples.
    out
        Where to write the maps as a Zarr store, besides returning them; must not exist.
    channels
        As in `gridrad_cube.embedding.embed`: one map for each.

    Returns
    -------
    ``attention(sample, head, token_y, token_x)``, at level 2k ``(sample, head, row, col)``: float32, shares of the
    attention of the class token. What they lack of 1 goes to itself; NaN where there is nothing to look at. With
    ``crop``, ``channel`` (``row``, ``col``), time, position, source file and pixel window of each sample.

    Raises
    ------
    SchemaError
        If a sample is not in the store, the checkpoint does not fit, or ``out`` is taken.
    """
    if out is not None and Files(out).names():
        raise SchemaError(f"{os.fspath(out)}: is there already; it is left as it is. Pass another --out.")
    work = Work(
        store=os.fspath(store), checkpoint=os.fspath(checkpoint), checkpoint_2k=None, out="", device=device,
        batch_size=1, channels=channels, dtype="float32", key=key, pool="class", stride=None, normalize=normalize,
    )  # fmt: skip
    source = work.source()
    index = _index(source, samples)
    labels = list(source.labels)
    if isinstance(source, PatchInput):
        maps, dims = _of_patches(source, index), ("token_y", "token_x")
    else:
        maps, dims = _of_grids(source, index["crop"]), ("row", "col")
    each = {d: np.repeat(i, len(labels)) for d, i in index.items()}
    found = _coordinates(source, each)
    said = {"long_name": "attention of the class token in the last block", "units": "1"}
    result = found.assign(attention=(("sample", "head", *dims), maps, said)).assign_coords(
        channel=("sample", np.array(labels * len(index["crop"]), object))
    )
    result.attrs = {
        "Conventions": "CF-1.11", "title": "Attention maps", "checkpoint": source.network.fingerprint,
        "level": source.level, "source_identity": str(source.info.get("identity")),
    }  # fmt: skip
    if out is not None:
        text = [n for n, v in result.variables.items() if v.dtype == object]
        written = result.assign_coords({n: result[n].astype(np.dtypes.StringDType()) for n in text})
        written.to_zarr(os.fspath(out), mode="w-", zarr_format=3, consolidated=True)
    return result


def _index(source: PatchInput | GridInput, samples: xr.Dataset | Sequence[Any]) -> dict[str, np.ndarray]:
    """Positions of the samples asked for along crop (and row and col at level 256)."""
    cells = ("row", "col") if isinstance(source, PatchInput) else ()
    if isinstance(samples, xr.Dataset):
        missing = [d for d in ("crop", *cells) if d not in samples.variables]
        if missing:
            raise SchemaError(f"attention: the answer has no {missing}; expected samples of {source.store}")
        columns = [np.ravel(samples[d].values) for d in ("crop", *cells)]
        asked = list(dict.fromkeys(zip(*(c.tolist() for c in columns), strict=True)))
    else:
        asked = []
        for sample in samples:
            one = (sample,) if isinstance(sample, (int, np.integer)) else tuple(sample)
            if len(one) == 1 and cells:
                asked += [
                    (one[0], row, col) for row in range(source.cells[0]) for col in range(source.cells[1])
                ]
            else:
                asked.append(one)
    sizes = (source.crops, *source.cells) if cells else (source.crops,)
    for one in asked:
        fits = len(one) == len(sizes) and all(0 <= i < n for i, n in zip(one, sizes, strict=True))
        if not fits:
            names = ", ".join(f"{d} 0 to {n - 1}" for d, n in zip(("crop", *cells), sizes, strict=True))
            raise SchemaError(f"attention: no sample {one} in {source.store}; it has {names}")
    if not asked:
        raise SchemaError("attention: no samples; expected (crop, row, col), or numbers of crops")
    return dict(zip(("crop", *cells), np.array(asked, np.int64).T, strict=True))


def _of_patches(source: PatchInput, index: dict[str, np.ndarray]) -> np.ndarray:
    """Maps of patches, (samples x labels, heads, tokens down, tokens across), a crop at a time."""
    labels = len(source.labels)
    heads = source.network.backbone.architecture.heads
    edge = round(source.patch / source.network.coarsen * source.network.magnification)
    tokens = edge // source.network.backbone.patch_size
    out = np.full((len(index["crop"]), labels, heads, tokens, tokens), np.nan, np.float32)
    for crop in np.unique(index["crop"]).tolist():
        here = np.flatnonzero(index["crop"] == crop)
        where = np.stack([
            np.tile(np.arange(labels), len(here)),
            *(np.repeat(index[d][here], labels) for d in ("row", "col")),
        ], axis=1)  # fmt: skip
        codes, there = source.codes(crop, where)
        maps = np.full((len(where), heads, tokens, tokens), np.nan, np.float32)
        if there.any():
            maps[there] = source.network.patch_attention(codes, where[there, 0], source.rules)
        out[here] = maps.reshape(len(here), labels, heads, tokens, tokens)
    return out.reshape(-1, *out.shape[2:])


def _of_grids(source: GridInput, crops: np.ndarray) -> np.ndarray:
    """Maps of grids, (crops x labels, heads, rows, cols)."""
    heads = source.network.backbone.architecture.heads
    out = np.full((len(crops), len(source.labels), heads, *source.cells), np.nan, np.float32)
    for i, crop in enumerate(crops.tolist()):
        grids, cells = source.cells_of(range(crop, crop + 1))
        there = cells[0].any(axis=(1, 2))
        if there.any():
            out[i, there] = source.network.grid_attention(
                grids[0, there], cells[0, there], source.normalization
            )
    return out.reshape(-1, *out.shape[2:])


def _coordinates(source: PatchInput | GridInput, index: dict[str, np.ndarray]) -> xr.Dataset:
    """When, where and of which file the samples are."""
    dataset = source.dataset
    if isinstance(source, GridInput):  # one place a crop, as in a store of level 2k
        blank = np.zeros((dataset.sizes["crop"], 1), np.float32)
        dataset = dataset.drop_vars([n for n in dataset.variables if "channel" in dataset[n].dims])
        dataset = dataset.assign(embedding=(("crop", "feature"), blank))
    found = collect(dataset, index, "sample")
    return found.drop_vars([n for n in found.data_vars]).drop_vars(
        [n for n, v in found.coords.items() if "sample" not in v.dims], errors="ignore"
    )
