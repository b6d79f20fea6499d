"""Linear probes: how much of an attribute a linear function of a vector tells on days it has not seen."""

from __future__ import annotations

import numpy as np

from gridrad_cube.evaluation.days import CHOOSE, FIT

#: Penalties of ridge regression by the mean variance of a feature, of which the choosing days choose.
RIDGE = tuple(10.0**p for p in range(-6, 4))
#: Penalties of logistic regression, a case.
LOGISTIC = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def ridge(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Predict ``y`` linearly from ``x``, in closed form.

    Features are standardised. The penalty that errs least on the choosing days is taken.

    Parameters
    ----------
    x
        Shape (cases, features).
    y
        Shape (cases, targets).
    part
        `FIT`, `CHOOSE` or anything else, of each case.

    Returns
    -------
    Predictions for every case, (cases, targets).
    """
    fit, choose = part == FIT, part == CHOOSE
    x, mean = _standard(x, fit), y[fit].mean(axis=0)
    weights, vectors = np.linalg.eigh(x[fit].T @ x[fit] / fit.sum())
    along = vectors.T @ (x[fit].T @ (y[fit] - mean)) / fit.sum()
    scale = max(float(weights.mean()), 1e-300)
    best: tuple[float, np.ndarray] | None = None
    for penalty in RIDGE:
        slopes = vectors @ (along / (np.maximum(weights, 0) + penalty * scale)[:, None])
        error = float(((x[choose] @ slopes + mean - y[choose]) ** 2).sum())
        if best is None or error < best[0]:
            best = (error, slopes)
    assert best is not None
    return np.asarray(x @ best[1] + mean)


def logistic(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Log odds of a yes for every case, linear in ``x``; parameters as for `ridge`, ``y`` booleans (cases,)."""
    from scipy.optimize import minimize

    fit, choose = part == FIT, part == CHOOSE
    x, sign = _standard(x, fit), np.where(y, 1.0, -1.0)
    start = np.zeros(x.shape[1] + 1)
    best: tuple[float, np.ndarray] | None = None
    for penalty in LOGISTIC:

        def loss(w: np.ndarray, penalty: float = penalty) -> tuple[float, np.ndarray]:
            margin = sign[fit] * (x[fit] @ w[1:] + w[0])
            pull = -sign[fit] * np.exp(-np.logaddexp(0, margin)) / fit.sum()
            slopes = np.concatenate([[pull.sum()], x[fit].T @ pull + penalty * w[1:]])
            return float(np.logaddexp(0, -margin).mean() + penalty / 2 * (w[1:] @ w[1:])), slopes

        w = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
        odds = x @ w[1:] + w[0]
        error = float(np.logaddexp(0, -sign[choose] * odds[choose]).mean())
        if best is None or error < best[0]:
            best = (error, odds)
    assert best is not None
    return best[1]


def _standard(x: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Features less their mean, by their deviation, of the fitting cases; those that do not vary become 0."""
    x = np.asarray(x, np.float64)
    mean, std = x[fit].mean(axis=0), x[fit].std(axis=0)
    steady = std <= 1e-12 * np.maximum(np.abs(mean), 1.0)
    return np.where(steady, 0.0, (x - mean) / np.where(steady, 1.0, std))


def nuisance(solar_hour: np.ndarray, latitude: np.ndarray, time: np.ndarray) -> np.ndarray:
    """What an attribute may follow without a look at the picture: solar time, latitude and season, (cases, 8).

    Two harmonics of the local mean solar time, latitude and its square, one harmonic of the year.
    """
    day = 2 * np.pi * solar_hour / 24
    start = time.astype("datetime64[Y]")
    year = 2 * np.pi * ((time - start) / np.timedelta64(1, "s")) / (365.2425 * 86400)
    columns = [np.sin(day), np.cos(day), np.sin(2 * day), np.cos(2 * day), latitude, latitude**2,
               np.sin(year), np.cos(year)]  # fmt: skip
    return np.stack(columns, axis=1)


def clock(solar_hour: np.ndarray) -> np.ndarray:
    """The hour as a point on a circle, (cases, 2): 23 lies next to 0."""
    angle = 2 * np.pi * solar_hour / 24
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)
