"""The embedding store on disk: one shard a block of crops, a record of each, and the root last.

Under ``_build/`` lie ``embed.json`` (what is embedded, by which network, how) and ``blocks/`` (one record a
finished block: its size and checksum, and what decided its content). A run that starts again verifies the
records and makes the rest; the root ``zarr.json`` is written last.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gridrad_cube.schema import SchemaError, flag_attributes
from gridrad_cube.store import (
    COORDINATES,
    ArraySpec,
    Files,
    encode,
    group_metadata,
    metadata,
    number_arrays,
    write_array,
)

BUILD = "_build"
#: Small arrays of some crops by name.
Small = dict[str, np.ndarray]
#: Bytes of a shard, uncompressed, that a block of crops aims at, and of a chunk in it.
SHARD_BYTES, CHUNK_BYTES = 8 * 2**20, 2**20
#: Crops of a block at most: what an interrupted run may lose.
BLOCK_CROPS = {"256": 64, "2k": 1024}
#: Crops of a chunk of the small arrays; a multiple of every block.
ROWS = 1024

#: Variable with the factor of each embedding in a store of int8.
SCALE = "embedding_scale"

_CELL_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "flags": flag_attributes() | {"long_name": "flags of the patch that was embedded"},
    "valid_fraction": {"long_name": "observed share of the patch", "units": "1"},
    SCALE: {
        "long_name": "what the codes of embedding are multiplied by; NaN where there is none",
        "units": "1",
    },
}


def _power_of_two(most: int, bytes_each: int, target: int) -> int:
    return 1 << (max(1, min(most, target // max(bytes_each, 1))).bit_length() - 1)


class Output:
    """An embedding store that is being written, or was.

    Parameters
    ----------
    out
        Path or URL.
    level
        Of the embeddings.
    crops
        Number of rows.
    dims
        Of ``embedding`` after ``crop``.
    shape
        Of the embeddings of one crop.
    dtype
        As they are stored. ``"int8"``: codes from -127 to 127 and a factor for each embedding, in a variable of
        its own; what has no embedding has the factor NaN.
    """

    def __init__(
        self, out: str | os.PathLike[str], *, level: str, crops: int, dims: tuple[str, ...], shape: tuple[int, ...],
        dtype: str,
    ) -> None:  # fmt: skip
        self.files, self.crops, self.dtype = Files(out), crops, dtype
        bytes_each = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.block = _power_of_two(BLOCK_CROPS[level], bytes_each, SHARD_BYTES)
        together = _power_of_two(self.block, bytes_each // shape[0], CHUNK_BYTES)
        self.spec = ArraySpec(
            name="embedding", dims=("crop", *dims), shape=(crops, *shape), dtype=dtype,
            chunks=(together, 1, *shape[1:]), shards=(self.block, *shape), codec="fast",
            fill_value=0 if dtype == "int8" else float("nan"),
        )  # fmt: skip

    @property
    def blocks(self) -> list[range]:
        """Rows of each block."""
        return [range(i, min(i + self.block, self.crops)) for i in range(0, self.crops, self.block)]

    def begin(self, request: Mapping[str, Any], *, resume: bool) -> None:
        """Claim the place for a request, or go on with the same one.

        Raises
        ------
        SchemaError
            If there is something else, or the embeddings of another request; says what differs.
        """
        wanted = json.loads(json.dumps({**request, "block": self.block}))
        self._check_place()
        claim = f"{BUILD}/embed.json"
        if self.files.create(claim, json.dumps(wanted).encode()):
            return
        found = self._claimed(claim)
        if resume:
            _check_same(found, wanted, self.files.root)
            return
        self.files.remove("zarr.json")
        for name in self.files.names(f"{BUILD}/blocks"):
            self.files.remove(f"{BUILD}/blocks/{name}")
        self.files.write_json(claim, wanted)

    def _claimed(self, claim: str) -> dict[str, Any]:
        """What is being embedded here."""
        try:
            return dict(self.files.read_json(claim))
        except ValueError as error:
            raise SchemaError(
                f"{self.files.root}: {claim} cannot be read ({error}). Remove the store, or pass another --out."
            ) from error

    def _check_place(self) -> None:
        """Refuse a place that holds anything but embeddings, or the beginnings of them."""
        # In this order: whoever wrote anything else had claimed the place before.
        others = set() if self._is_file() else set(self.files.names()) - {BUILD}
        begun = set() if self._is_file() else set(self.files.names(BUILD))
        foreign = others and "embed.json" not in begun
        if self._is_file() or foreign or begun - {"embed.json", "blocks"}:
            raise SchemaError(
                f"{self.files.root}: holds something that gridrad-cube embed did not write; it is left as it is. "
                "Pass another --out."
            )

    def _is_file(self) -> bool:
        return self.files.local and os.path.isfile(self.files.root)

    def record(self, number: int) -> dict[str, Any] | None:
        """The record of a finished block whose shard is there in its recorded size, or None."""
        try:
            found = dict(self.files.read_json(self._key(number)))
        except FileNotFoundError:
            return None
        whole = all(self.files.size(key) == size for key, (size, _) in found["shards"].items())
        return found if whole else None

    def _key(self, number: int) -> str:
        return f"{BUILD}/blocks/{number:06d}.json"

    def write(self, number: int, vectors: np.ndarray, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write one block, then its record.

        Raises
        ------
        SchemaError
            If a vector has values too large for the dtype.
        """
        shard = np.full(self.spec.shards or (), self.spec.fill_value, self.dtype)
        values = dict(record.get("values", {}))
        if self.dtype == "int8":
            shard[: len(vectors)], scale = quantize(vectors)
            values |= pack_values({SCALE: scale})
        else:
            with np.errstate(over="ignore"):
                shard[: len(vectors)] = vectors
        if (bad := np.isinf(shard[: len(vectors)])).any():
            where = tuple(int(i) for i in np.argwhere(bad)[0][:-1])
            crop = record["first"] + where[0]
            raise SchemaError(
                f"{self.files.root}: the embedding at {dict(zip(self.spec.dims, (crop, *where[1:]), strict=False))} is "
                f"too large for {self.dtype}. Pass dtype='float32'."
            )
        data = encode(self.spec, shard)
        key = self.spec.key((number, *(0 for _ in self.spec.dims[1:])))
        self.files.write(key, data)
        embedded = int(np.isfinite(vectors).all(axis=-1).sum())
        kept = {"values": values} if values else {}
        full = {**record, **kept, "embedded": embedded, "shards": {key: [len(data), zlib.crc32(data)]}}
        self.files.write_json(self._key(number), full)
        return full

    def identity(self, request: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]]) -> str:
        """Hash of what the store holds: the request and every shard's checksum."""
        digest = hashlib.sha256(json.dumps(dict(request), sort_keys=True).encode())
        for number in sorted(records):
            digest.update(json.dumps(sorted(records[number]["shards"].items())).encode())
        return digest.hexdigest()[:32]

    def commit(
        self,
        labels: Mapping[str, np.ndarray],
        small: Iterator[tuple[range, Small]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write the small arrays and then the root: the store appears, or grows, at once.

        Parameters
        ----------
        labels
            Coordinates on ``channel``, by name.
        small
            Coordinates and flags, ``ROWS`` crops at a time: the rows, and arrays by name.
        """
        specs: dict[str, ArraySpec] = {name: _label_spec(name, values) for name, values in labels.items()}
        for name, column in labels.items():
            self.files.write(specs[name].key((0,)), encode(specs[name], column))
        for rows, values in small:
            for name, array in values.items():
                specs[name] = _small_spec(name, array, self.crops)
                self._write_small(specs[name], rows, array)
        specs["embedding"] = self._described(specs)
        sizes = {d: n for spec in specs.values() for d, n in zip(spec.dims, spec.shape, strict=True)}
        for spec, numbers in number_arrays(sizes, ROWS):
            specs[spec.name] = spec
            write_array(self.files, spec, numbers)
        members = {name: metadata(spec) for name, spec in specs.items()}
        for name, value in members.items():
            self.files.write_json(f"{name}/zarr.json", value)
        root = group_metadata(attributes, members)
        self.files.write("zarr.json", json.dumps(root, allow_nan=False).encode())

    def _write_small(self, spec: ArraySpec, rows: range, values: np.ndarray) -> None:
        dtype = object if spec.dtype == "string" else spec.dtype
        block = np.full(spec.chunks, spec.fill_value, dtype)
        block[: len(rows)] = values
        self.files.write(spec.key((rows.start // ROWS, *(0 for _ in spec.dims[1:]))), encode(spec, block))

    def _described(self, specs: Mapping[str, ArraySpec]) -> ArraySpec:
        cells = [name for name in _CELL_ATTRIBUTES if name in specs]
        attributes = {
            "long_name": "embedding; NaN where there was nothing to embed", "units": "1",
            **({"comment": f"codes: multiply each by its {SCALE}; gridrad_cube.open_embeddings does"}
               if self.dtype == "int8" else {}),
            "coordinates": " ".join(n for n in specs if n not in cells and n != "channel"),
            "ancillary_variables": " ".join(cells),
        }  # fmt: skip
        return ArraySpec(**{**self.spec.__dict__, "attributes": attributes})

    def gather(self, records: Mapping[int, Mapping[str, Any]], rows: range) -> dict[str, np.ndarray]:
        """Values that the records of some blocks keep, one after the other."""
        numbers = range(rows.start // self.block, -(-rows.stop // self.block))
        parts = [unpack_values(records[n].get("values", {})) for n in numbers]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def quantize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors as codes from -127 to 127 (int8) and the factor of each (float32): codes * factor is near them.

    Within half a factor, which is 1/254 of a vector's largest value. The factor of a vector that is not finite is NaN.
    """
    largest = np.abs(vectors).max(axis=-1)
    scale = np.where(np.isfinite(largest), largest / 127, np.nan).astype(np.float32)
    divisor = np.where(scale > 0, scale, 1.0)[..., None]
    codes = np.rint(np.where(np.isfinite(scale)[..., None], vectors, 0.0) / divisor)
    return np.clip(codes, -127, 127).astype(np.int8), scale


def pack_values(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Small arrays as JSON, bit for bit (zlib, base64)."""
    return {
        name: [a.dtype.str, list(a.shape), base64.b64encode(zlib.compress(a.tobytes(), 1)).decode()]
        for name, a in values.items()
    }


def unpack_values(packed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `pack_values`."""
    return {
        name: np.frombuffer(zlib.decompress(base64.b64decode(data)), dtype).reshape(shape)
        for name, (dtype, shape, data) in packed.items()
    }


def row_groups(crops: int, small: Callable[[range], Small]) -> Iterator[tuple[range, Small]]:
    """Small arrays of all crops, ``ROWS`` at a time."""
    for start in range(0, crops, ROWS):
        rows = range(start, min(start + ROWS, crops))
        yield rows, small(rows)


def _small_spec(name: str, array: np.ndarray, crops: int) -> ArraySpec:
    if name in COORDINATES:
        dims, dtype, attributes = COORDINATES[name]
    else:
        dims = ("crop", "channel", "row", "col")[: array.ndim]
        dtype, attributes = array.dtype.name, _CELL_ATTRIBUTES[name]
    fill: Any = attributes.get("_FillValue", {"f": np.nan, "s": ""}.get(dtype[0], 0))
    return ArraySpec(
        name=name, dims=dims, shape=(crops, *array.shape[1:]), dtype=dtype, chunks=(ROWS, *array.shape[1:]),
        fill_value=fill, attributes=attributes,
    )  # fmt: skip


def _label_spec(name: str, values: np.ndarray) -> ArraySpec:
    number = values.dtype.kind == "f"
    attributes: dict[str, Any] = {
        "channel": {"long_name": "channel that was embedded"},
        "variable": {"long_name": "variable that the channel belongs to"},
        "altitude_km": {"long_name": "altitude of the channel above mean sea level", "units": "km"},
    }[name]
    return ArraySpec(
        name=name, dims=("channel",), shape=values.shape, dtype="float64" if number else "string",
        chunks=values.shape, fill_value=np.nan if number else "", attributes=attributes,
    )  # fmt: skip


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if not differing:
        return
    if "checkpoint" in differing:
        what = f"embeddings of another checkpoint ({found.get('checkpoint')}, not {wanted['checkpoint']})"
    else:
        shown = [f"{k} {_short(found.get(k))} there, {_short(wanted[k])} here" for k in differing]
        what = f"embeddings made otherwise or of another store: {'; '.join(shown)}"
    raise SchemaError(f"{where}: holds {what}. Pass another --out, or resume=False to make it anew.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
