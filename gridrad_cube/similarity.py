"""Vectors: their directions and effective rank, and the nearest of a large array.

The search for the nearest is exact and reads blocks. A matrix product in float32 finds the rows that can be
among the nearest; those few are measured again in float64. So the answer depends on the vectors alone: not on
the size of the blocks, the number of queries asked at once, or how a matrix product rounds. This module imports
numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from gridrad_cube.launch import cores
from gridrad_cube.schema import SchemaError

__all__ = ["Metric", "nearest", "rank_me", "scores", "unit_rows"]


def __dir__() -> list[str]:
    return __all__


#: How two vectors are compared: the cosine of their angle, their distance, or their inner product.
Metric = Literal["cosine", "euclidean", "dot"]

#: Rows that one read takes, unless told otherwise.
_BLOCK = 65536
#: Rows of one matrix product: 4096 x 384 float32 stay in the cache for the pass that takes their lengths.
_TILE = 4096
#: Queries of one matrix product.
_QUERIES = 256
#: Up to this many queries are multiplied one by one, with the tiles of a block divided among threads. The threads of
#: a matrix product would wait for each other after every tile, which costs more than it gains for few queries.
_FEW = 4

#: Lengths of vectors whose square float32 holds with its full precision.
_SHORTEST, _LONGEST = 1e-15, 1e18

_ROUNDOFF = 2.0**-24


def unit_rows(vectors: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Vectors (..., D) divided by their lengths, float64; vectors of zeros stay as they are."""
    out = np.asarray(vectors, np.float64)
    length = np.linalg.norm(out, axis=-1, keepdims=True)
    return np.asarray(out / np.where(length == 0, 1.0, length))


def rank_me(vectors: npt.ArrayLike) -> float:
    """Effective number of dimensions: the exponential of the entropy of the singular values (arXiv 2210.02885).

    From 1 to the number of features; 1 if all vectors are zero. Rows that are not finite do not count.
    """
    rows = np.asarray(vectors, np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    # Eigenvalues of the smaller matrix of products are the squares of the singular values, and cost a third.
    products = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    values = np.sqrt(np.linalg.eigvalsh(products).clip(min=0.0))
    share = values / max(values.sum(), 1e-300)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


class Rows(Protocol):
    """Vectors as rows: a numpy array, a Zarr array, or anything else that gives rows for a slice."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows and length of a vector."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows as something that numpy takes for an array."""


def nearest(
    vectors: Rows,
    query: npt.ArrayLike,
    k: int,
    *,
    metric: Metric = "cosine",
    mask: npt.ArrayLike | None = None,
    drop: Sequence[npt.NDArray[np.int64]] | None = None,
    block: int = _BLOCK,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the k rows nearest to a query, best first; of equal scores the lower row comes first.

    Exact: every row is compared. Reads ``block`` rows at a time, and none of a block that the mask rules
    out, so memory is bounded whatever the array is. Rows that hold a NaN or an infinity are never returned,
    nor, with cosine, rows of zeros, which have no direction. Lengths are squared in float32: a vector
    longer than 1e18 counts as infinite, and one shorter than 1e-15 has no direction.

    Parameters
    ----------
    vectors
        Shape (N, D), any real dtype, sliced by rows.
    query
        One vector, shape (D,), or a batch, shape (Q, D), answered in one pass over the rows.
    k
        How many rows to return.
    metric
        ``"cosine"``: the score is the cosine of the angle, largest first. ``"euclidean"``: the score is the
        distance, smallest first. ``"dot"``: the score is the inner product, largest first: what a linear
        probe gives whose weights are the query.
    mask
        Rows that may be returned, booleans of shape (N,).
    drop
        For each query of a batch, rows that it may not have: sorted, without repeats.
    block
        Rows in one read.

    Returns
    -------
    Rows and their scores (float32), each of shape (K,) or (Q, K): K is k, or less where fewer rows may be
    returned. A query of a batch that has fewer than others ends in row -1 and score NaN.

    Raises
    ------
    SchemaError
        If the query is not finite, does not fit the vectors, or has no direction (cosine); or if k, the
        metric, the mask or the block makes no sense.
    """
    queries = _check(vectors, query, k, metric, block)
    allowed = None if mask is None else _check_mask(mask, vectors.shape[0])
    drop = [np.empty(0, np.int64)] * len(queries) if drop is None else drop
    # Products of matrices have threads of their own.
    threads = min(cores(), 16) if len(queries) <= _FEW and vectors.shape[0] > 4 * _TILE else 1
    each = [_groups(queries, k, metric, drop) for _ in range(threads)]
    with ThreadPoolExecutor(threads, thread_name_prefix="nearest") as pool:
        _search(vectors, block, allowed, each, pool)
    groups = each[0]
    for others in each[1:]:
        for group, other in zip(groups, others, strict=True):
            group.merge(other)
    indices = _stacked([rows for group in groups for rows in group.rows], -1)
    found = _stacked([scores for group in groups for scores in group.scores], np.float32(np.nan))
    return (indices[0], found[0]) if np.ndim(query) == 1 else (indices, found)


def _groups(queries: np.ndarray, k: int, metric: Metric, drop: Sequence[np.ndarray]) -> list[_Best]:
    starts = range(0, len(queries), _QUERIES)
    return [_Best(queries[i : i + _QUERIES], k, metric, drop[i : i + _QUERIES]) for i in starts]


def _search(
    vectors: Rows, block: int, allowed: np.ndarray | None, each: list[list[_Best]], pool: ThreadPoolExecutor
) -> None:
    """Read block by block; the tiles of a block go round the threads, of which each has its own best so far."""
    for start in range(0, vectors.shape[0], block):
        inside = (
            np.ones(min(block, vectors.shape[0] - start), bool)
            if allowed is None
            else allowed[start:][:block]
        )
        wanted = np.flatnonzero(inside)
        if not len(wanted):
            continue
        first, last = int(wanted[0]), int(wanted[-1]) + 1
        rows = np.asarray(vectors[start + first : start + last])
        tiles, arguments = range(0, last - first, _TILE), (rows, inside[first:last], start + first)
        if len(each) == 1:
            _compare(*arguments, tiles, each[0])
        else:
            works = [
                pool.submit(_compare, *arguments, tiles[i :: len(each)], groups)
                for i, groups in enumerate(each)
            ]
            for work in works:
                work.result()


def _stacked(parts: Sequence[np.ndarray], fill: Any) -> np.ndarray:
    out = np.full((len(parts), max(map(len, parts))), fill, parts[0].dtype)
    for line, part in zip(out, parts, strict=True):
        line[: len(part)] = part
    return out


def scores(
    vectors: Rows,
    query: npt.ArrayLike,
    *,
    metric: Metric = "cosine",
    mask: npt.ArrayLike | None = None,
    block: int = _BLOCK,
) -> npt.NDArray[np.float32]:
    """The score of every row for one query: the very numbers that `nearest` gives. NaN where it gives none.

    Parameters
    ----------
    query
        Shape (D,). The rest is as in `nearest`; blocks that the mask rules out are not read.

    Returns
    -------
    float32, shape (N,).
    """
    best = _Best(_check(vectors, np.asarray(query).reshape(-1), 1, metric, block), 1, metric, [])
    allowed = None if mask is None else _check_mask(mask, vectors.shape[0])
    out = np.full(vectors.shape[0], np.nan, np.float32)
    for start in range(0, vectors.shape[0], block):
        stop = min(start + block, vectors.shape[0])
        if allowed is not None and not allowed[start:stop].any():
            continue
        rows = np.asarray(vectors[start:stop])
        for tile in range(0, len(rows), _TILE):
            raw, here = rows[tile : tile + _TILE], slice(start + tile, start + min(tile + _TILE, len(rows)))
            usable = _usable(_squares(raw)[1], metric)
            if allowed is not None:
                usable &= allowed[here]
            out[here][usable] = best.exact(raw[usable], 0)
    return out


class _Best:
    """The best rows so far for each query of a group."""

    def __init__(self, queries: np.ndarray, k: int, metric: Metric, drop: Sequence[np.ndarray]) -> None:
        self.queries, self.k, self.metric, self.drop = queries, k, metric, drop
        self.scores = [np.empty(0, np.float32) for _ in queries]
        self.rows = [np.empty(0, np.int64) for _ in queries]
        self.limit = np.full(len(queries), np.inf)  # cost of the k-th best so far
        self.length = np.sqrt(np.einsum("ij,ij->i", queries, queries))
        self.matrix = (queries / self.length[:, None] if metric == "cosine" else queries).astype(np.float32)

    def costs(self, part: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Costs (small is near) in float32, shape (rows, queries), and how far off they can be."""
        # A dot product of D terms is off by at most D roundoffs times both lengths, in whatever order a
        # matrix product adds; so are the squared lengths. The rest covers conversions to float32.
        bound = (2 * part.shape[1] + 32) * _ROUNDOFF
        if len(self.queries) <= _FEW:
            products = np.stack([np.einsum("ij,j->i", part, vector) for vector in self.matrix], axis=1)
        else:
            products = part @ self.matrix.T
        if self.metric == "cosine":
            return products / -np.sqrt(squares)[:, None], np.full((1, 1), bound, np.float32)
        if self.metric == "dot":
            lengths = np.sqrt(squares)[:, None] * self.length.astype(np.float32)
            return -products, bound * lengths + np.finfo(np.float32).tiny
        sums = squares[:, None] + (self.length**2).astype(np.float32)
        return sums - 2 * products, bound * sums + np.finfo(np.float32).tiny

    def exact(self, part: np.ndarray, query: int) -> np.ndarray:
        """Scores from float64, each row by itself, so that equal rows score equally wherever they lie."""
        vector = self.queries[query]
        part = part.astype(np.float64)
        if self.metric == "euclidean":
            part -= vector
            return np.sqrt(np.einsum("ij,ij->i", part, part)).astype(np.float32)
        if self.metric == "dot":
            return np.einsum("ij,j->i", part, vector).astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", part, part)) * self.length[query]
        return np.clip(np.einsum("ij,j->i", part, vector) / lengths, -1.0, 1.0).astype(np.float32)

    def add(self, query: int, rows: np.ndarray, scores: np.ndarray) -> None:
        """Merge rows into the best of a query."""
        rows = np.concatenate([self.rows[query], rows])
        scores = np.concatenate([self.scores[query], scores])
        order = np.lexsort((rows, scores if self.metric == "euclidean" else -scores))[: self.k]
        self.rows[query], self.scores[query] = rows[order], scores[order]
        if len(order) == self.k:
            worst = float(scores[order[-1]])
            self.limit[query] = worst**2 if self.metric == "euclidean" else -worst

    def merge(self, other: _Best) -> None:
        """Take in what another one found for the same queries."""
        for query in range(len(self.queries)):
            self.add(query, other.rows[query], other.scores[query])

    def kept(self, query: int, rows: np.ndarray) -> np.ndarray:
        """Which rows (ascending) a query may have."""
        drop = self.drop[query]
        if not len(drop):
            return np.ones(len(rows), bool)
        return drop[np.minimum(np.searchsorted(drop, rows), len(drop) - 1)] != rows


def _compare(rows: np.ndarray, inside: np.ndarray, start: int, tiles: range, groups: list[_Best]) -> None:
    """Compare the rows of some tiles that lie inside a mask with the best so far."""
    for tile in tiles:
        here = slice(tile, tile + _TILE)
        _compare_tile(rows[here], inside[here], start + tile, groups)


def _compare_tile(raw: np.ndarray, inside: np.ndarray, start: int, groups: list[_Best]) -> None:
    count = np.count_nonzero(inside)
    if not count:
        return
    rows = np.arange(start, start + len(raw))
    if 2 * count < len(raw):  # else a product with some rows too many is cheaper than a copy
        raw, rows, inside = raw[inside], rows[inside], np.ones(count, bool)
    part, squares = _squares(raw)
    usable = inside & _usable(squares, groups[0].metric)
    for group in groups:
        with np.errstate(all="ignore"):  # of rows that are not usable
            costs, error = group.costs(part, squares)
            close = (costs - error <= group.limit) & usable[:, None]
        for query in np.flatnonzero(close.any(axis=0)).tolist():
            near = np.flatnonzero(close[:, query])
            near = near[group.kept(query, rows[near])]
            if len(near) > group.k:  # a row whose least cost is above the k-th greatest cost is out
                most = (costs + error)[near, query]
                least = (costs - error)[near, query]
                near = near[least <= np.partition(most, group.k - 1)[group.k - 1]]
            group.add(query, rows[near], group.exact(raw[near], query))


def _squares(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in float32, and their squared lengths."""
    with np.errstate(over="ignore", invalid="ignore"):
        part = raw.astype(np.float32, copy=False)
        return part, np.einsum("ij,ij->i", part, part)


def _usable(squares: np.ndarray, metric: Metric) -> np.ndarray:
    """Which rows have a score."""
    usable = squares < _LONGEST**2
    if metric == "cosine":
        usable &= squares > _SHORTEST**2
    return usable


def _check(vectors: Rows, query: npt.ArrayLike, k: int, metric: str, block: int) -> np.ndarray:
    if metric not in get_args(Metric):
        raise SchemaError(f"metric: got {metric!r}; expected one of {', '.join(get_args(Metric))}")
    if k < 1 or block < 1:
        raise SchemaError(f"k and block: got {k} and {block}; expected at least 1 of each")
    if len(vectors.shape) != 2:
        raise SchemaError(f"vectors: got shape {tuple(vectors.shape)}; expected (rows, features)")
    queries = np.atleast_2d(np.asarray(query, np.float64))
    if queries.ndim != 2 or queries.shape[1] != vectors.shape[1] or not len(queries):
        raise SchemaError(
            f"query: got shape {np.shape(query)}; expected ({vectors.shape[1]},), the length of the vectors, "
            f"or a batch (queries, {vectors.shape[1]})"
        )
    if not (np.abs(queries) < _LONGEST / queries.shape[1]).all():
        raise SchemaError("query: it holds a NaN, an infinity or a huge number; expected finite numbers")
    if metric == "cosine" and not (np.abs(queries).max(axis=1) > _SHORTEST).all():
        raise SchemaError("query: a vector of zeros has no direction. Pass metric='euclidean'.")
    return queries


def _check_mask(mask: npt.ArrayLike, rows: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (rows,):
        raise SchemaError(
            f"mask: got {mask.dtype} of shape {mask.shape}; expected booleans of shape ({rows},)"
        )
    return mask
