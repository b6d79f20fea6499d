"""An index of a large store's embeddings: most of the nearest without comparing all, and how many it misses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube import similarity
from gridrad_cube.query.likeness import Rows, require_embeddings
from gridrad_cube.schema import SchemaError

#: Rows a list that training of the lists sees, and queries that measure recall.
_TRAIN_EACH, _QUERIES = 64, 64
#: Candidates that are scored exactly for each answer asked for.
_CANDIDATES = 8


class Index:
    """Lists of embeddings about centres, eight bits a feature, of which a search looks at some; from `build_index`.

    Pass it to `search` as ``index=``. It holds about ``features + 8`` bytes a sample.

    Attributes
    ----------
    recall
        Share of the 10 nearest of 64 of its own samples that it found, against exact search.
    """

    def __init__(self, faiss: Any, lists: Any, metric: similarity.Metric, shape: tuple[int, ...]) -> None:
        self._faiss, self._lists, self.metric, self.shape = faiss, lists, metric, shape
        self.recall = float("nan")

    def __repr__(self) -> str:
        return (
            f"Index({self._lists.ntotal} embeddings, {self._lists.nlist} lists of which {self._lists.nprobe} are "
            f"searched, {self.metric}, recall {self.recall:.3f})"
        )

    def attributes(self) -> dict[str, Any]:
        """What an answer says about the index."""
        return {
            "index": f"faiss IVF{self._lists.nlist},SQ8, {self._lists.nprobe} probed",
            "recall": self.recall,
        }

    def nearest(
        self,
        rows: Rows,
        queries: npt.NDArray[np.float64],
        k: int,
        *,
        metric: similarity.Metric,
        mask: npt.NDArray[np.bool_],
        drop: Sequence[npt.NDArray[np.int64]],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """As `gridrad_cube.similarity.nearest` of a batch, but of the candidates of the index alone.

        All that the mask leaves are compared where the index knows fewer than k of them.

        Raises
        ------
        SchemaError
            If the index is of another metric or another store, or a query does not fit.
        """
        if metric != self.metric or rows.shape != self.shape:
            raise SchemaError(
                f"index: made for {self.metric} and embeddings of shape {self.shape}; got {metric} and {rows.shape}. "
                "Build one of this store: build_index(dataset, metric=...)."
            )
        out = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), np.nan, np.float32)
        for i, (query, gone) in enumerate(zip(queries, drop, strict=True)):
            allowed = mask.copy()
            allowed[gone] = False
            bits = np.packbits(allowed, bitorder="little")
            chosen = self._faiss.SearchParametersIVF(
                sel=self._faiss.IDSelectorBitmap(bits), nprobe=self._lists.nprobe
            )
            asked = _ready(query[None], metric)
            _, found = self._lists.search(asked, min(_CANDIDATES * k, len(mask)), params=chosen)
            candidates = np.sort(found[found >= 0])
            if len(candidates) < min(k, int(np.count_nonzero(allowed))):
                # Few of the lists hold what the filters leave: then there is not much of it.
                best, score = similarity.nearest(
                    rows, query, k, metric=metric, mask=allowed, block=rows.block()
                )
                candidates = np.arange(len(allowed))
            else:
                best, score = similarity.nearest(rows.take(candidates), query, k, metric=metric)
            out[i, : len(best)], scores[i, : len(best)] = candidates[best], score
        most = max(int((out >= 0).sum(axis=1).max()), 1)
        return out[:, :most], scores[:, :most]


def build_index(
    dataset: xr.Dataset,
    *,
    metric: similarity.Metric = "cosine",
    lists: int | None = None,
    probes: int | None = None,
    seed: int = 0,
) -> Index:
    """Build an index of every embedding of a store, and measure what it misses. Needs the extra ``index`` (faiss).

    Exact search of a million embeddings takes a fraction of a second; an index pays above some tens of
    millions, or for very many queries.

    Parameters
    ----------
    dataset
        A store of embeddings.
    metric
        Of the searches that it serves.
    lists, probes
        How many lists there are, and how many a search looks at: more probes, more recall, more time. None:
        four times the square root of the number of samples, and an eighth of the lists.
    seed
        Of the samples that the lists are made from.

    Raises
    ------
    SchemaError
        If faiss is not installed, or the store has too few embeddings.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise SchemaError(
            "index: faiss is not installed. Run pip install 'gridrad-cube[index]', or search without index=."
        ) from error
    require_embeddings(dataset, "index")
    rows = Rows(dataset["embedding"].variable)
    count, features = rows.shape
    lists = max(1, min(round(4 * count**0.5), count // 39)) if lists is None else lists
    probes = max(1, lists // 8) if probes is None else probes
    if not 1 <= probes <= lists <= count:
        raise SchemaError(
            f"index: got {lists} lists, {probes} probes for {count} samples; expected 1 <= probes <= lists <= samples"
        )
    rng = np.random.default_rng(seed)
    some = np.sort(rng.choice(count, min(count, _TRAIN_EACH * lists), replace=False))
    sample = _ready(rows.take(some), metric)
    sample = sample[np.isfinite(sample).all(axis=1)]
    if len(sample) < lists:
        raise SchemaError(
            f"index: {len(sample)} embeddings are too few for {lists} lists. Pass fewer lists=."
        )
    kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    made = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlat(features, kind), features, lists, faiss.ScalarQuantizer.QT_8bit, kind
    )
    made.own_fields = False
    made.cp.seed, made.cp.niter, made.nprobe = seed + 1, 10, probes
    made.train(sample)
    for start in range(0, count, rows.block()):
        block = _ready(rows[start : min(start + rows.block(), count)], metric)
        good = np.flatnonzero(np.isfinite(block).all(axis=1))
        made.add_with_ids(block[good], good + start)
    index = Index(faiss, made, metric, rows.shape)
    known = rng.choice(some, min(_QUERIES, len(some)), replace=False)
    queries = rows.take(np.sort(known)).astype(np.float64)
    queries = queries[np.isfinite(queries).all(axis=1) & queries.any(axis=1)]
    index.recall = _recall(index, rows, queries)
    return index


def _recall(index: Index, rows: Rows, queries: np.ndarray) -> float:
    """Share of the ten nearest that the index finds."""
    every = np.ones(rows.shape[0], bool)
    exact, _ = similarity.nearest(rows, queries, 10, metric=index.metric, block=rows.block())
    none = [np.empty(0, np.int64)] * len(queries)
    found, _ = index.nearest(rows, queries, 10, metric=index.metric, mask=every, drop=none)
    hits = sum(len(np.intersect1d(e[e >= 0], f[f >= 0])) for e, f in zip(exact, found, strict=True))
    return hits / int((exact >= 0).sum())


def _ready(vectors: np.ndarray, metric: similarity.Metric) -> np.ndarray:
    """Float32 rows as faiss takes them; of length one for cosine. NaN where a row has no direction."""
    out = np.ascontiguousarray(vectors, np.float32)
    if metric == "cosine":
        with np.errstate(invalid="ignore", divide="ignore"):
            out = out / np.linalg.norm(out, axis=1, keepdims=True)
    return out
