"""Embedding stores: written in blocks of crops and finished by their root; read by whole chunks."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from gridrad_cube.lease import Lease, lease
from gridrad_cube.schema import SchemaError, flag_attributes
from gridrad_cube.selection import parse_label
from gridrad_cube.storage import Files
from gridrad_cube.store.integrity import (
    Commit,
    Root,
    damaged_objects,
    info_of,
    last_commit,
    manifests,
    read_root,
)
from gridrad_cube.store.layout import COORDINATES, ArraySpec, encode, number_arrays, whole_array
from gridrad_cube.store.shards import ShardLayout, ShardReader, damage_error

#: Uncompressed bytes of a shard, and of a chunk in it.
_SHARD_BYTES, _CHUNK_BYTES = 8 * 2**20, 2**20
#: Largest number of crops in a block, by level. An interrupted run may lose one block.
_BLOCK_CROPS = {"256": 64, "2k": 1024}
#: Crops of a chunk of the small arrays; a multiple of every block.
_ROWS = 1024

#: Earlier name of a pool in stores, and the name that it has now.
_FORMER_POOL = ("class_mean", "class+mean")

_BUILD = "_build"
CLAIM = f"{_BUILD}/embed.json"
_CELL_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "flags": flag_attributes() | {"long_name": "flags of the patch that was embedded"},
    "valid_fraction": {"long_name": "observed share of the patch", "units": "1"},
}
_LABEL_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "channel": {"long_name": "channel that was embedded"},
    "variable": {"long_name": "variable that the channel belongs to"},
    "altitude_km": {"long_name": "altitude of the channel above mean sea level", "units": "km"},
}


class EmbeddingWriter:
    """An embedding store that is being written: one shard for each block of crops, the root last.

    Under ``_build/`` lie ``embed.json`` (the request), ``blocks/`` (one record for each finished block: the
    size and checksum of its shard, and the inputs that decide its content) and ``manifest/`` (see
    `gridrad_cube.store.integrity`). A run that starts again keeps the complete blocks and writes the others.
    Readers see the store, or its growth, when `finish` writes the root ``zarr.json``.

    Parameters
    ----------
    out
        Path or URL.
    request
        Inputs that decide the embeddings, JSON types, with ``level`` and ``dtype`` (``"float16"`` or
        ``"float32"``). Two runs write to the same store only if their requests are equal.
    crops
        Number of rows.
    shape
        Shape of the embeddings of one crop: (channel, row, col, feature) or (channel, feature).
    """

    def __init__(
        self, out: str | os.PathLike[str], request: Mapping[str, Any], *, crops: int, shape: tuple[int, ...]
    ) -> None:
        self.files, self.request, self.crops = Files(out), dict(request), crops
        dtype = request["dtype"]
        bytes_each = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._block = _power_of_two(_BLOCK_CROPS[request["level"]], bytes_each, _SHARD_BYTES)
        together = _power_of_two(self._block, bytes_each // shape[0], _CHUNK_BYTES)
        self._spec = ArraySpec(
            name="embedding", shape=(crops, *shape), dtype=dtype, codec="fast", fill_value=float("nan"),
            dims=("crop", "channel", *(("row", "col") if len(shape) == 4 else ()), "feature"),
            chunks=(together, 1, *shape[1:]), shards=(self._block, *shape),
        )  # fmt: skip

    @property
    def blocks(self) -> list[range]:
        """Rows of each block."""
        return [range(i, min(i + self._block, self.crops)) for i in range(0, self.crops, self._block)]

    @contextmanager
    def lease(self, *, shared: bool = False) -> Iterator[Lease]:
        """Hold the right to write; another run is refused (`gridrad_cube.lease`).

        Parameters
        ----------
        shared
            True for a part of a run, which shares the place with other parts of the same request. Otherwise
            unfinished files of killed writers are removed.

        Yields
        ------
        The lease.

        Raises
        ------
        SchemaError
            If somebody else writes to this store, or something else lies there.
        """
        self._check_place()
        run = hashlib.sha256(json.dumps(self.request, sort_keys=True).encode()).hexdigest()[:32]
        with lease(self.files, _BUILD, run=run if shared else "") as held:
            if not shared:
                self.files.remove_partials()
            yield held

    def begin(self, *, resume: bool) -> None:
        """Claim the place for the request, or resume a run with an equal request.

        Parameters
        ----------
        resume
            If false, the finished blocks and the root of an earlier run are removed.

        Raises
        ------
        SchemaError
            If something else is there, or embeddings of another request; the message names the differences.
        """
        wanted = json.loads(json.dumps({**self.request, "block": self._block}))
        self._check_place()
        self._restore_claim()
        if self.files.create(CLAIM, _record_bytes(wanted)):
            return
        try:
            found = dict(self.files.read_json(CLAIM))
        except ValueError as error:
            raise SchemaError(
                f"{self.files.root}: {CLAIM} cannot be read ({error}). Remove the store, or pass another `out`."
            ) from error
        if resume:
            if (found.get("pool"), wanted.get("pool")) == _FORMER_POOL:
                self.request["pool"] = wanted["pool"] = found["pool"]  # so that the store keeps its identity
            _check_same(found, wanted, self.files.root)
            return
        self.uncommit()
        for key in manifests(self.files):
            self.files.remove(key)
        for name in self.files.names(f"{_BUILD}/blocks"):
            self.files.remove(f"{_BUILD}/blocks/{name}")
        self.files.write_json(CLAIM, wanted)

    def _restore_claim(self) -> None:
        """Restore the request from the last commit, if it is missing or differs."""
        last = last_commit(self.files)
        request = last.about.get("request") if last else None
        if request:
            try:
                same = self.files.read_json(CLAIM) == request
            except (FileNotFoundError, ValueError):
                same = False
            if not same:
                self.files.write_json(CLAIM, request)

    def uncommit(self) -> None:
        """Hide the store from readers until `finish`, before a block that they see is overwritten."""
        if self.files.exists("zarr.json"):
            self.files.remove("zarr.json")

    def committed(self) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
        """Return the ``gridrad_cube`` attribute of the last commit, and ``rows`` and ``content`` of its
        blocks by number.

        Returns
        -------
        The attribute, and ``rows`` and ``content`` by number of the block.
        """
        last = last_commit(self.files)
        if last is None:
            return {}, {}
        return last.root.info, {int(n): block for n, block in last.about.get("blocks", {}).items()}

    def _check_place(self) -> None:
        """Refuse a place that holds anything except embeddings, finished or not."""
        is_file = self.files.local and os.path.isfile(self.files.root)
        # In this order: a process that wrote anything else had claimed the place before.
        others = set() if is_file else set(self.files.names()) - {_BUILD}
        found = () if is_file else self.files.names(_BUILD)
        begun = {name for name in found if not name.startswith("lease")}
        if (
            is_file
            or (others and not begun & {"embed.json", "blocks"})
            or begun - {"embed.json", "blocks", "manifest"}
        ):
            raise SchemaError(
                f"{self.files.root}: holds something that gridrad-cube embed did not write; it was not changed. "
                "Pass another `out`."
            )

    def record(self, number: int) -> dict[str, Any] | None:
        """Return the record of a finished block whose shard is there in its recorded size, or None.

        Parameters
        ----------
        number
            Number of the block.

        Returns
        -------
        The record; None if it is missing, or its shard is missing or has another size.
        """
        try:
            found = read_record(self.files, number)
        except (FileNotFoundError, ValueError):
            return None
        whole = all(self.files.size(key) == size for key, (size, _) in found["shards"].items())
        return found if whole else None

    def is_whole(self, record: Mapping[str, Any]) -> bool:
        """Return whether the shard of a record has the bytes that were written.

        Parameters
        ----------
        record
            The record.

        Returns
        -------
        True if the shard has these bytes.
        """
        return all(zlib.crc32(self.files.read(key)) == crc for key, (_, crc) in record["shards"].items())

    def write(
        self,
        number: int,
        vectors: np.ndarray,
        record: Mapping[str, Any],
        values: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """Write one block, then its record.

        Parameters
        ----------
        number
            Number of the block.
        vectors
            Embeddings of its crops, float32; NaN for samples without an embedding.
        record
            Inputs that decided the content, JSON types.
        values
            Small arrays of these crops that the record keeps for `finish`, because they take long to compute.

        Returns
        -------
        The record.

        Raises
        ------
        SchemaError
            If an embedding has values too large for the dtype.
        """
        rows, dims = self.blocks[number], self._spec.dims
        shard = np.full(self._spec.shards or (), np.nan, self._spec.dtype)
        with np.errstate(over="ignore"):
            shard[: len(vectors)] = vectors
        if (bad := np.isinf(shard)).any():
            crop, *rest = (int(i) for i in np.argwhere(bad)[0][:-1])
            place = dict(zip(dims, (rows.start + crop, *rest), strict=False))
            raise SchemaError(
                f"{self.files.root}: the embedding at {place} is too large for {self._spec.dtype}. "
                "Pass dtype='float32'."
            )
        data = encode(self._spec, shard)
        key = self._spec.key(number)
        self.files.write(key, data)
        full = {
            "first": rows.start, "rows": len(rows), **record,
            **({"values": _pack(values)} if values else {}),
            "embedded": int(np.isfinite(vectors).all(axis=-1).sum()),
            "shards": {key: [len(data), zlib.crc32(data)]},
        }  # fmt: skip
        full["crc"] = _record_checksum(full)
        self.files.write(record_key(number), _record_bytes(full))
        return full

    def finish(
        self,
        records: Mapping[int, Mapping[str, Any]],
        small: Callable[[range], Mapping[str, np.ndarray]],
        info: Mapping[str, Any],
        *,
        event: str,
        attributes: Mapping[str, Any] | None = None,
        history: str | None = None,
        extends: bool = False,
    ) -> None:
        """Write the small arrays and then the root, unless an equal and complete store exists already.

        Parameters
        ----------
        records
            Records of all blocks.
        small
            Function that returns coordinates, flags and fractions of some rows by name. Values in the records
            are added.
        info
            Entries of the ``gridrad_cube`` attribute besides the request. ``channels`` maps each label of the
            channel axis to the channels of its embeddings.
        event
            Line of the history, without the time.
        attributes
            Further attributes of the root.
        history
            History of the source, for a store without a history.
        extends
            True if the values of crops that were in the store before have not changed.
        """
        damaged = damaged_objects(self.files)
        commit = Commit(self.files, damaged)
        ours = {**self.request, "kind": "embeddings", **info, "identity": self._identity(records)}
        if not damaged and self._is_committed(commit, ours):
            return
        specs = {}
        for spec, column in _label_arrays(info["channels"]):
            specs[spec.name] = spec
            commit.write_array(spec, column)
        for start in range(0, self.crops, _ROWS):
            rows = range(start, min(start + _ROWS, self.crops))
            values = dict(small(rows)) | self._values(records, rows)
            specs |= {name: self._write_rows(commit, name, rows, array) for name, array in values.items()}
        cells = [name for name in _CELL_ATTRIBUTES if name in specs]
        described = {
            "long_name": "embedding; NaN where there was nothing to embed", "units": "1",
            "coordinates": " ".join(n for n in specs if n not in cells and n != "channel"),
            "ancillary_variables": " ".join(cells),
        }  # fmt: skip
        specs["embedding"] = dataclasses.replace(self._spec, attributes=described)
        for spec in specs.values():
            commit.add(spec)
        sizes = {d: n for spec in specs.values() for d, n in zip(spec.dims, spec.shape, strict=True)}
        for spec, numbers in number_arrays(sizes, _ROWS):
            commit.write_array(spec, numbers)
        stamp = np.datetime_as_string(np.datetime64("now", "s"), timezone="UTC")
        before = commit.history or history
        root = {
            "Conventions": "CF-1.11",
            "title": f"Embeddings of level {self.request['level']} of gridded radar and satellite fields",
            "history": f"{before}\n{stamp} {event}" if before else f"{stamp} {event}",
            "gridrad_cube": ours,
            **(attributes or {}),
        }
        commit.note(CLAIM, self.files.read(CLAIM))
        for number, record in records.items():
            commit.note(record_key(number), _record_bytes(record))
        blocks = {n: {"rows": r["rows"], "content": r.get("content")} for n, r in records.items()}
        about = {"request": self.files.read_json(CLAIM), "blocks": blocks}
        commit.finish(root, extends=extends, about=about)

    def _is_committed(self, commit: Commit, info: Mapping[str, Any]) -> bool:
        """Return whether the store is there with these attributes, and has a manifest."""
        last = commit.last
        if last is None or not last.objects:
            return False
        old = {name: value for name, value in last.root.info.items() if name != "checksum"}
        return bool(old == json.loads(json.dumps(info)))

    def _identity(self, records: Mapping[int, Mapping[str, Any]]) -> str:
        """Hash of what the store holds: the request and every shard's checksum."""
        digest = hashlib.sha256(json.dumps(self.request, sort_keys=True).encode())
        for number in sorted(records):
            digest.update(json.dumps(sorted(records[number]["shards"].items())).encode())
        return digest.hexdigest()[:32]

    def _values(self, records: Mapping[int, Mapping[str, Any]], rows: range) -> dict[str, np.ndarray]:
        """Return the values that the records of some blocks keep, one after the other."""
        numbers = range(rows.start // self._block, -(-rows.stop // self._block))
        parts = [_unpack(records[n].get("values", {})) for n in numbers]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _write_rows(self, commit: Commit, name: str, rows: range, values: np.ndarray) -> ArraySpec:
        """Write a chunk of a small array; return its spec."""
        if values.dtype.kind == "M":
            values = values.astype("datetime64[s]").astype(np.int64)
        if name in COORDINATES:
            dims, dtype, attributes = COORDINATES[name]
        else:
            dims = ("crop", "channel", "row", "col")[: values.ndim]
            dtype, attributes = values.dtype.name, _CELL_ATTRIBUTES[name]
        spec = ArraySpec(
            name=name, dims=dims, shape=(self.crops, *values.shape[1:]), dtype=dtype,
            chunks=(_ROWS, *values.shape[1:]), fill_value=attributes.get("_FillValue"), attributes=attributes,
        )  # fmt: skip
        commit.write_rows(spec, rows.start, values)
        return spec


def _power_of_two(most: int, bytes_each: int, target: int) -> int:
    return 1 << (max(1, min(most, target // max(bytes_each, 1))).bit_length() - 1)


def record_key(number: int) -> str:
    """Return the key of the record of a block."""
    return f"{_BUILD}/blocks/{number:06d}.json"


def read_record(files: Files, number: int) -> dict[str, Any]:
    """Return the record of a block.

    Raises
    ------
    FileNotFoundError
        If the record is missing.
    ValueError
        If it is not as it was written.
    """
    record = files.read_json(record_key(number))
    if not isinstance(record, dict):
        raise ValueError("it is not a record of a block")
    if "crc" in record and record["crc"] != _record_checksum(record):
        raise ValueError("its checksum differs")
    try:
        numbers = [record["rows"], *(record[name] for name in ("first", "embedded") if name in record)]
        numbers += [n for pair in record["shards"].values() for n in pair]
        if not all(type(n) is int for n in numbers):
            raise TypeError("a number")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a record of a block: {error!r}") from error
    return record


def _record_checksum(record: Mapping[str, Any]) -> int:
    text = json.dumps({k: v for k, v in record.items() if k != "crc"}, sort_keys=True)
    return int(zlib.crc32(text.encode()))


def _record_bytes(record: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(record), allow_nan=False, separators=(",", ":")).encode()


def _pack(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the small arrays as JSON, bit for bit (zlib, base64)."""
    return {
        name: [a.dtype.str, list(a.shape), base64.b64encode(zlib.compress(a.tobytes(), 1)).decode()]
        for name, a in values.items()
    }


def _unpack(packed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(zlib.decompress(base64.b64decode(data)), dtype).reshape(shape)
        for name, (dtype, shape, data) in packed.items()
    }


def _label_arrays(channels: Mapping[str, Sequence[str]]) -> list[tuple[ArraySpec, np.ndarray]]:
    """Return the coordinates on ``channel``: the labels, and the variable and altitude of those that have
    one.
    """
    members = [[parse_label(label) for label in labels] for labels in channels.values()]
    columns = {
        "channel": np.array(list(channels), object),
        "variable": np.array(["+".join(dict.fromkeys(name for name, _ in m)) for m in members], object),
        # NaN where a label has none or is made of several channels.
        "altitude_km": np.array([m[0][1] if len(m) == 1 else None for m in members], np.float64),
    }
    return [whole_array(n, ("channel",), column, _LABEL_ATTRIBUTES[n]) for n, column in columns.items()]


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if not differing:
        return
    if "checkpoint" in differing:
        what = f"embeddings of another checkpoint ({found.get('checkpoint')}, not {wanted['checkpoint']})"
    else:
        shown = [f"{k} {_short(found.get(k))} there, {_short(wanted[k])} here" for k in differing]
        what = f"embeddings made with other options or from another store: {'; '.join(shown)}"
    raise SchemaError(f"{where}: holds {what}. Pass another `out`, or resume=False to overwrite it.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class EmbeddingReader:
    """Read the embeddings of crops and channels, in any order. Picklable; opens nothing until the first read.

    Parameters
    ----------
    store
        Path or URL of a finished embedding store.
    threads
        As for `PatchReader`.
    """

    def __init__(self, store: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.files, self.threads = Files(store), threads

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(EmbeddingReader, threads=self.threads), (self.files.root,)

    def __repr__(self) -> str:
        return f"EmbeddingReader({self.files.root!r})"

    @functools.cached_property
    def root(self) -> Root:
        """The root of the store, as it was at the first read."""
        root = read_root(self.files)
        info_of(root.attributes, self.files.root, "embeddings")
        return root

    @functools.cached_property
    def _shards(self) -> ShardReader:
        array = self.root.members["embedding"]
        layout = ShardLayout.from_metadata("embedding", array)
        if layout.chunk_shape[1:] != (1, *array["shape"][2:]):
            raise SchemaError(
                f"{self.files.root}: a chunk of embedding is not one channel of some whole crops"
            )
        return ShardReader(self.files, layout, threads=self.threads)

    @property
    def together(self) -> int:
        """Crops of a chunk."""
        return self._shards.layout.chunk_shape[0]

    def read(self, crop: np.ndarray, channel: np.ndarray) -> np.ndarray:
        """Return the embeddings as `open_embeddings` gives them, shape (N, [row, col,] feature).

        Parameters
        ----------
        crop, channel
            Row and column of each in the store, integers, shape (N,).

        Returns
        -------
        float16 or float32, shape (N, [row, col,] feature).

        Raises
        ------
        MissingChunkError
            If a chunk is missing, truncated or altered; names the crop and the channel.
        """
        shards = self._shards
        together, *shape = shards.layout.chunk_shape
        block, within = np.divmod(crop, together)
        places, which = np.unique(np.stack([block, channel], axis=1), axis=0, return_inverse=True)
        chunks = np.empty((len(places), together, *shape), shards.layout.dtype)
        index = np.zeros((len(places), chunks.ndim - 1), np.int64)
        index[:, :2] = places
        failures = shards.read(index, chunks)
        if failures:
            row = min(failures)
            i = int(np.flatnonzero(which == row)[0])
            place = {"crop": int(crop[i]), "channel": int(channel[i])}
            raise damage_error(self.files.root, "embedding", place, failures[row], "gridrad-cube embed again")
        picked: np.ndarray = chunks[which, within, 0]
        return picked
