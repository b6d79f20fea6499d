"""Compare vectors: directions, effective rank, nearest neighbors in a large array, and ranks of targets.

The search is exact and reads blocks. A matrix product in float32 finds the rows that can be among the
nearest, and
only those are measured again in float64. So the result depends on the vectors alone, not on the size of the
blocks,
the number of queries in one call, or the rounding of a matrix product. This module imports numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gridrad_cube.launch import cores
from gridrad_cube.schema import SchemaError

__all__ = ["Metric", "directed", "nearest", "rank_among", "rank_me", "rank_targets", "scores", "unit_rows"]


def __dir__() -> list[str]:
    return __all__


#: How two vectors are compared: the cosine of their angle, their distance, or their inner product.
Metric = Literal["cosine", "euclidean", "dot"]

#: Rows of one read by default.
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

#: Cosines this close rank as equal: those of equal vectors differ by rounding.
_EQUAL = 1e-9
#: Queries whose targets are ranked at once.
_RANKED = 512

_ROUNDOFF = 2.0**-24


def unit_rows(vectors: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Divide vectors by their lengths. Vectors of zeros stay as they are.

    Parameters
    ----------
    vectors
        Shape (..., D).

    Returns
    -------
    float64, of the same shape.
    """
    out = np.asarray(vectors, np.float64)
    length = np.linalg.norm(out, axis=-1, keepdims=True)
    return np.asarray(out / np.where(length == 0, 1.0, length))


def rank_me(vectors: npt.ArrayLike) -> float:
    """Return the effective number of dimensions: exp of the entropy of the singular values (arXiv
    2210.02885).

    Parameters
    ----------
    vectors
        Shape (N, D). Rows that are not finite do not count.

    Returns
    -------
    From 1 to the number of features; 1 if all vectors are zero.
    """
    rows = np.asarray(vectors, np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    # Eigenvalues of the smaller matrix of products are the squares of the singular values, and cost a third.
    products = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    values = np.sqrt(np.linalg.eigvalsh(products).clip(min=0.0))
    share = values / max(values.sum(), 1e-300)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def directed(vectors: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows are finite and not zero, so that they have a direction.

    Parameters
    ----------
    vectors
        Shape (N, D).

    Returns
    -------
    Booleans of shape (N,).
    """
    return np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))


def rank_targets(
    queries: npt.ArrayLike,
    candidates: npt.ArrayLike,
    target: npt.ArrayLike,
    excluded: npt.ArrayLike | None = None,
) -> npt.NDArray[np.float64]:
    """Rank the target of each query among candidates by cosine.

    Parameters
    ----------
    queries, candidates
        Vectors, (queries, features) and (candidates, features).
    target
        Position of each query's target among the candidates, (queries,).
    excluded
        Candidates to leave out for each query, booleans (queries, candidates); None leaves out nothing. The
        target itself always counts.

    Returns
    -------
    Ranks, (queries,): 1 is best. Half of the candidates that score the same count, so equal vectors rank in the
    middle. NaN where the vector of the query or of the target is zero or not finite, and where no other candidate is
    left; other candidates without a direction do not count.
    """
    queries, candidates = np.asarray(queries), np.asarray(candidates)
    target, asked, known = np.asarray(target), directed(queries), directed(candidates)
    unit = unit_rows(np.where(asked[:, None], queries, 0.0))
    other = unit_rows(np.where(known[:, None], candidates, 0.0))
    out = np.full(len(unit), np.nan)
    for start in range(0, len(unit), _RANKED):
        some = slice(start, start + _RANKED)
        line, own = np.arange(len(target[some])), target[some]
        rival = np.broadcast_to(known, (len(own), len(known))).copy()
        rival &= True if excluded is None else ~np.asarray(excluded)[some]
        rival[line, own] = False
        scores = unit[some] @ other.T
        out[some] = np.where(rival.any(axis=1), rank_among(scores[line, own], scores, rival), np.nan)
    return np.where(asked & known[target], out, np.nan)


def rank_among(
    own: npt.NDArray[Any], scores: npt.NDArray[Any], rival: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return the rank of one score in each line among the scores of its rivals; 1 is best.

    Parameters
    ----------
    own
        Score to rank, (lines,).
    scores
        Scores of the candidates, (lines, candidates).
    rival
        Which candidates count, booleans (lines, candidates).

    Returns
    -------
    Ranks, (lines,). Half of the candidates with an equal score count.
    """
    equal = rival & (np.abs(scores - own[:, None]) <= _EQUAL)
    return np.asarray(1 + (rival & ~equal & (scores > own[:, None])).sum(axis=1) + equal.sum(axis=1) / 2)


def nearest(
    vectors: Any,
    query: npt.ArrayLike,
    k: int,
    *,
    metric: Metric = "cosine",
    mask: npt.ArrayLike | None = None,
    drop: Sequence[npt.NDArray[np.int64]] | None = None,
    block: int = _BLOCK,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the k rows nearest to a query, best first; of equal scores the lower row comes first.

    The search is exact: every row is compared. It reads ``block`` rows at a time, so that memory is bounded
    for any size of array, and skips blocks without a row of the mask. Rows with a NaN or an infinity are
    never returned, nor, with cosine, rows of zeros, which have no direction. Lengths are squared in float32:
    a vector longer than 1e18 counts as infinite, and one shorter than 1e-15 has no direction.

    Parameters
    ----------
    vectors
        Shape (N, D), any real dtype: a numpy array, a Zarr array, or any array that is indexed by a slice of
        rows.
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
        For each query of a batch, rows to leave out: sorted, without repeats.
    block
        Rows in one read.

    Returns
    -------
    Rows and their scores (float32), each of shape (K,) or (Q, K). K is k, or less if fewer rows may be
    returned. If a query of a batch has fewer rows than others, the rest is row -1 and score NaN.

    Raises
    ------
    SchemaError
        If the query is not finite, does not fit the vectors, or has no direction (cosine); or if k, the
        metric, the mask or the block is not valid.
    """
    queries, inside = _check(vectors, query, k, metric, mask, block)
    drop = [np.append(rows, len(inside)) for rows in drop or [np.empty(0, np.int64)] * len(queries)]
    # Matrix products already use several threads.
    threads = min(cores(), 16) if len(queries) <= _FEW and len(inside) > 4 * _TILE else 1
    parts = [slice(start, start + _QUERIES) for start in range(0, len(queries), _QUERIES)]
    each = [[_Best(queries[part], k, metric, drop[part]) for part in parts] for _ in range(threads)]
    with ThreadPoolExecutor(threads, thread_name_prefix="nearest") as pool:
        for rows, where in _read(vectors, inside, block):
            works = [
                pool.submit(
                    _compare, rows, inside[where], where.start, groups, range(i, len(rows), threads * _TILE)
                )
                for i, groups in zip(range(0, threads * _TILE, _TILE), each, strict=True)
            ]
            for work in works:
                work.result()
    found = []
    for first, *others in zip(*each, strict=True):
        for i in range(len(first.queries)):
            for other in others:
                first.add(i, other.rows[i], other.scores[i])
            found.append((first.rows[i], first.scores[i]))
    longest = max(len(rows) for rows, _ in found)
    indices, values = np.full((len(found), longest), -1), np.full((len(found), longest), np.nan, np.float32)
    for i, (rows, best) in enumerate(found):
        indices[i, : len(rows)], values[i, : len(rows)] = rows, best
    return (indices[0], values[0]) if np.ndim(query) == 1 else (indices, values)


def scores(
    vectors: Any,
    query: npt.ArrayLike,
    *,
    metric: Metric = "cosine",
    mask: npt.ArrayLike | None = None,
    block: int = _BLOCK,
) -> npt.NDArray[np.float32]:
    """Return the score of every row for one query: exactly the numbers that `nearest` returns.

    Parameters
    ----------
    vectors, metric, mask, block
        As of `nearest`. Blocks without a row of the mask are not read.
    query
        Shape (D,).

    Returns
    -------
    float32, shape (N,); NaN for rows that `nearest` never returns.
    """
    queries, inside = _check(vectors, np.ravel(query), 1, metric, mask, block)
    best, out = _Best(queries, 1, metric, []), np.full(len(inside), np.nan, np.float32)
    for rows, where in _read(vectors, inside, block):
        for tile in range(0, len(rows), _TILE):
            raw = rows[tile : tile + _TILE]
            here = slice(where.start + tile, where.start + tile + len(raw))
            usable = inside[here] & _usable(raw, metric)[2]
            out[here][usable] = best.exact(raw[usable], 0)
    return out


def _read(vectors: Any, inside: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, slice]]:
    """Yield the rows block by block, from the first to the last of each block that lies inside a mask, and
    where they are.
    """
    for start in range(0, len(inside), block):
        wanted = np.flatnonzero(inside[start : start + block])
        if len(wanted):
            where = slice(start + int(wanted[0]), start + int(wanted[-1]) + 1)
            yield np.asarray(vectors[where]), where


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
        """Return the costs (small is near) in float32, shape (rows, queries), and how far off they can be."""
        # The error of a dot product of D terms is at most D roundoffs times both lengths, for any order of
        # the additions. The same holds for the squared lengths. The rest covers conversions to float32.
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
        """Return the scores from float64, each row by itself, so that equal rows have equal scores."""
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


def _compare(rows: np.ndarray, inside: np.ndarray, start: int, groups: list[_Best], tiles: range) -> None:
    """Compare the rows of some tiles that lie inside a mask with the best so far."""
    for tile in tiles:
        raw, usable = rows[tile : tile + _TILE], inside[tile : tile + _TILE]
        names = np.arange(start + tile, start + tile + len(raw))
        count = np.count_nonzero(usable)
        if 2 * count < len(raw):  # else a product with some rows too many is cheaper than a copy
            raw, names, usable = raw[usable], names[usable], np.ones(count, bool)
        part, squares, scored = _usable(raw, groups[0].metric)
        usable = usable & scored
        for group in groups:
            with np.errstate(all="ignore"):  # of rows that are not usable
                costs, error = group.costs(part, squares)
                close = (costs - error <= group.limit) & usable[:, None]
            for query in np.flatnonzero(close.any(axis=0)).tolist():
                near, drop = np.flatnonzero(close[:, query]), group.drop[query]
                near = near[drop[np.searchsorted(drop, names[near])] != names[near]]
                if len(near) > group.k:  # a row whose least cost is above the k-th greatest cost is out
                    most = (costs + error)[near, query]
                    least = (costs - error)[near, query]
                    near = near[least <= np.partition(most, group.k - 1)[group.k - 1]]
                group.add(query, names[near], group.exact(raw[near], query))


def _usable(raw: np.ndarray, metric: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows in float32, their squared lengths, and which of them have a score."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = raw.astype(np.float32, copy=False)
        squares = np.einsum("ij,ij->i", rows, rows)
    return rows, squares, (squares < _LONGEST**2) & ((squares > _SHORTEST**2) | (metric != "cosine"))


def _check(
    vectors: Any, query: npt.ArrayLike, k: int, metric: str, mask: npt.ArrayLike | None, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the queries (Q, D) in float64, and which rows may be returned."""
    if metric not in get_args(Metric):
        raise SchemaError(f"metric: got {metric!r}; expected one of {', '.join(get_args(Metric))}")
    if k < 1 or block < 1:
        raise SchemaError(f"k and block: got {k} and {block}; expected at least 1 of each")
    if len(vectors.shape) != 2:
        raise SchemaError(f"vectors: got shape {tuple(vectors.shape)}; expected (rows, features)")
    count, features = vectors.shape
    queries = np.atleast_2d(np.asarray(query, np.float64))
    if queries.ndim != 2 or queries.shape[1] != features or not len(queries):
        raise SchemaError(
            f"query: got shape {np.shape(query)}; expected ({features},), the length of the vectors, or a batch "
            f"(queries, {features})"
        )
    if not (np.abs(queries) < _LONGEST / features).all():
        raise SchemaError("query: it holds a NaN, an infinity or a huge number; expected finite numbers")
    if metric == "cosine" and not (np.abs(queries).max(axis=1) > _SHORTEST).all():
        raise SchemaError("query: a vector of zeros has no direction. Pass metric='euclidean'.")
    inside = np.ones(count, bool) if mask is None else np.asarray(mask)
    if inside.dtype != bool or inside.shape != (count,):
        raise SchemaError(
            f"mask: got {inside.dtype} of shape {inside.shape}; expected booleans of shape ({count},)"
        )
    return queries, inside
