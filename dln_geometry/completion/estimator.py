"""`MatrixCompleter`: fill the holes of a table, with the conventions of scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dln_geometry.completion.base import Estimator, Transformer, seed_of
from dln_geometry.completion.folding import folded
from dln_geometry.completion.intake import (
    bounds_of,
    entries_of,
    extended,
    features_of,
    is_pair,
    renamed,
)
from dln_geometry.completion.prediction import Predictions, predict_entries, spread_quantile
from dln_geometry.completion.problem import LINKS, Problem
from dln_geometry.completion.report import results_of, table_of
from dln_geometry.completion.search import DEPTHS, Choice, Search
from dln_geometry.completion.training import PATIENCE, Model
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_count, as_depth, as_flag, as_positive, as_rank, warn
from dln_geometry.tables import Entries, Ids, as_table

SMALL = 10_000
"""Up to so many entries double precision is the default."""


class MatrixCompleter(Transformer, Estimator):
    r"""Complete a table by deep linear networks that stop at the best validation error.

    The table is modelled as ``mean + b_i + c_j + X_ij``: shrunk means of the sides, and the
    end-to-end matrix X of a balanced deep linear network, which starts small, follows the gradient
    flow of ``1/2 sum_e w_e (model - v)^2 + (k/2) sum_p |W_p|^2`` and keeps the point with the least
    error on held-out entries. Depth, rank and decay k are chosen by that error, then everything is
    trained again on all entries for the time that was best.

    Parameters
    ----------
    depth : float or "auto"
        Depth N >= 1 of the network, real or infinite: 2 is the nuclear norm, larger depths prefer
        lower rank. ``"auto"`` tries 2, 2.5 and 3.
    rank : int or "auto"
        Bound on the rank of X.
    decay : float or "auto"
        Weight decay, without units: the force on a small mode relative to the spectral norm of a
        residual without structure. 0.5 is a good guess, 0 none.
    loss : {"squared", "logistic", "poisson"}
        ``"logistic"`` predicts probabilities of entries in [0, 1], ``"poisson"`` means of counts.
    biases : bool
        Fit means of rows and columns beside the global mean.
    shrink : float
        Ridge of the side means: as many entries as pull a mean towards 0.
    bounds : None, "observed" or pair of float
        Clip predictions, never the training.
    validation : float
        Share of the entries that is held out; small tables are split several times. 0 trains one
        setting (depth 2 and decay 0.5, if they are ``"auto"``) until the gradient is flat.
    refit : bool
        Train on all entries once the choices are made.
    starts : int
        Number of random starts whose predictions are averaged.
    duplicates : {"raise", "mean", "last"}
        What to do with a pair that is given repeatedly.
    patience : int
        Accepted steps without a better validation error that end a flow.
    rtol : float
        Tolerance of the flows.
    seconds : float, optional
        Limit of the time of `fit`; the best so far is kept.
    warm_start : bool
        Begin `fit` with the choices and the matrix of the last one.
    random_state : None, int or numpy random state
        Seed of splits and starts; None is 0.
    dtype, device : optional
        Where and in what to compute: float32 from 10,000 entries on by default.
    verbose : bool
        Print what is tried and chosen.

    Attributes
    ----------
    depth_, rank_, decay_ : the choices.
    validation_error_, side_means_error_ : float
        Root mean square error (or mean log loss) on held-out entries, of the model and of the
        offsets alone; NaN without validation.
    row_ids_, col_ids_ : Ids or None
        Names of the sides, None where places count.
    models_ : tuple of Model
        Offsets and `Collapsed` matrices that predict.
    cv_results_ : dict of lists
        What was tried: ``params``, ``mean_test_score`` (minus the error), ``rank_test_score``, ...
    report_ : str
        A table of training and validation errors, best and last, and the choices.
    coverage_ : float
        Share of held-out entries inside 90 % intervals that were fitted on the other half.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
    >>> x[2, 1] = np.nan
    >>> completer = MatrixCompleter(depth=3, rank=1, decay=0.0, validation=0.0, biases=False)
    >>> bool(abs(completer.fit_transform(x)[2, 1] - 6) < 0.1)
    True
    """

    def __init__(
        self,
        depth: Any = "auto",
        rank: Any = "auto",
        decay: Any = "auto",
        *,
        loss: str = "squared",
        biases: bool = True,
        shrink: float = 5.0,
        bounds: Any = None,
        validation: float = 0.1,
        refit: bool = True,
        starts: int = 1,
        duplicates: str = "raise",
        patience: int = PATIENCE,
        rtol: float = 1e-3,
        seconds: float | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        dtype: Any = None,
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.depth, self.rank, self.decay, self.loss = depth, rank, decay, loss
        self.biases, self.shrink, self.bounds = biases, shrink, bounds
        self.validation, self.refit, self.starts = validation, refit, starts
        self.duplicates, self.patience, self.rtol = duplicates, patience, rtol
        self.seconds, self.warm_start, self.random_state = seconds, warm_start, random_state
        self.dtype, self.device, self.verbose = dtype, device, verbose

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        row_features: Any = None,
        col_features: Any = None,
        validation_entries: tuple[Any, Any, Any] | None = None,
    ) -> Self:
        """Fit a table, and return self.

        Parameters
        ----------
        X : array_like (m, n), frame or sparse matrix, or tuple (rows, cols)
            A matrix with holes (NaN, masked, missing; entries that a sparse matrix does not store),
            or ids of rows and columns of the entries `y`, strings or integers.
        y : array_like, shape (k,), optional
            The entries, if X is ``(rows, cols)``; else ignored.
        sample_weight : array_like, shape (k,) or (m, n), optional
            Weights >= 0 of the entries.
        row_features, col_features : array_like, shape (m, p) and (n, q), optional
            Known numbers of the sides; frames are aligned by their index.
        validation_entries : tuple (rows, cols, values), optional
            Held-out entries to use instead of random ones; they are not trained on without `refit`.
        """
        entries = entries_of(X, y, self.duplicates)
        self._set_features(X, entries)
        return self._fit(
            entries, X, sample_weight, (row_features, col_features), validation_entries
        )

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Add entries, new rows and columns among them, and train on from the present matrix."""
        if not hasattr(self, "entries_"):
            return self.fit(X, y)
        new, old = entries_of(X, y, self.duplicates), self.entries_
        if (new.row_ids is None) != (old.row_ids is None):
            raise ValueError("X must name its rows and columns as the fitted table does")
        shape = tuple(max(a, b) for a, b in zip(old.shape, new.shape, strict=True))
        row_ids = col_ids = None
        if new.row_ids is not None and old.row_ids is not None:
            assert new.col_ids is not None
            assert old.col_ids is not None
            row_ids = extended(old.row_ids, new.row_ids)
            col_ids = extended(old.col_ids, new.col_ids)
            new, shape = renamed(new, row_ids, col_ids), (len(row_ids), len(col_ids))
        # The newer of two values of one entry counts.
        key = np.concatenate([e.rows * shape[1] + e.cols for e in (old, new)])
        values = np.concatenate([old.values, new.values])
        key, last = np.unique(key[::-1], return_index=True)
        entries = replace(
            old,
            rows=key // shape[1],
            cols=key % shape[1],
            values=values[::-1][last],
            shape=shape,
            row_ids=row_ids,
            col_ids=col_ids,
        )
        return self._fit(entries, None, None, (None, None), None, warm=True)

    def _fit(
        self,
        entries: Entries,
        X: Any,
        weight: Any,
        features: tuple[Any, Any],
        validation: tuple[Any, Any, Any] | None,
        *,
        warm: bool = False,
    ) -> Self:
        warm = warm or (as_flag(self.warm_start, "warm_start") and hasattr(self, "models_"))
        problem = self._problem(entries, X, weight, features)
        held: Problem | float = self._share()
        if validation is not None:
            held = self._held(problem, entries, validation)
        seed = seed_of(self.random_state)
        seconds = math.inf if self.seconds is None else as_positive(self.seconds, "seconds")
        search = Search(
            problem,
            held,
            seed=seed,
            rtol=as_positive(self.rtol, "rtol"),
            patience=as_count(self.patience, "patience"),
            seconds=seconds,
            progress=print if self.verbose else None,
        )
        depths, rank, decay = self._choices(problem, warm)
        start = self._grown(problem) if warm else None
        choice = search.choose(
            depths,
            rank,
            decay,
            refit=as_flag(self.refit, "refit"),
            starts=as_count(self.starts, "starts"),
            start=start,
        )
        self.entries_, self._problem_ = entries, problem
        self.row_ids_, self.col_ids_ = entries.row_ids, entries.col_ids
        self.shape_ = entries.shape
        self._set_results(choice, problem)
        if self.verbose:
            print(self.report_)
        return self

    def _set_results(self, choice: Choice, problem: Problem) -> None:
        setting = choice.setting
        self.depth_, self.rank_, self.decay_ = setting.depth, setting.rank, setting.decay
        self.models_ = tuple(fit.model for fit in choice.fits)
        self.validation_error_, self.side_means_error_ = choice.best, choice.side_means
        self.train_error_ = float(np.mean([fit.train for fit in choice.fits]))
        self.cv_results_ = results_of(choice)
        self.curve_ = choice.validated[0].curve if choice.validated else ()
        self.n_iter_ = max(fit.evaluations for fit in choice.fits)
        self._quantiles_, self.coverage_ = spread_quantile(choice, problem)
        self.report_ = table_of(choice, problem, self.coverage_)

    def _problem(self, entries: Entries, X: Any, weight: Any, features: tuple[Any, Any]) -> Problem:
        """Return the entries as tensors, with all that was asked for checked."""
        if self.loss not in LINKS:
            raise ValueError(f"loss must be one of {', '.join(LINKS)}, got {self.loss!r}")
        dtype = self.dtype
        if dtype is None:
            dtype = torch.float64 if len(entries.values) <= SMALL else torch.float32
        values = torch.as_tensor(entries.values).to(dtype=dtype, device=self.device)
        if self.loss == "logistic" and not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError("entries must lie in [0, 1] for the logistic loss")
        if self.loss == "poisson" and bool((values < 0).any()):
            raise ValueError("entries must be at least 0 for the Poisson loss")
        rows, cols = (
            torch.from_numpy(np.ascontiguousarray(x, dtype=np.int64)).to(values.device)
            for x in (entries.rows, entries.cols)
        )
        weights = None
        if weight is not None:
            w = np.asarray(weight, dtype=np.float64)
            if w.ndim == 2:
                w = w[entries.rows, entries.cols]
            if w.shape != entries.values.shape or not (w >= 0).all() or not w.any():
                raise ValueError(
                    f"sample_weight must hold {len(entries.values)} numbers >= 0, not all 0, got "
                    f"shape {w.shape}"
                )
            weights = torch.from_numpy(w).to(values)
        sides = zip(
            features,
            entries.shape,
            (entries.row_ids, entries.col_ids),
            ("row_features", "col_features"),
            strict=True,
        )
        known = [features_of(f, count, ids, name, values) for f, count, ids, name in sides]
        return Problem(
            rows,
            cols,
            values,
            entries.shape,
            weights,
            self.loss,
            as_flag(self.biases, "biases"),
            as_positive(self.shrink, "shrink"),
            (known[0], known[1]),
            bounds_of(self.bounds, entries.values),
        )

    def _share(self) -> float:
        share = as_positive(self.validation, "validation", zero=True)
        if not share < 1:
            raise ValueError(f"validation must lie in [0, 1), got {self.validation!r}")
        return share

    def _held(
        self, problem: Problem, entries: Entries, validation: tuple[Any, Any, Any]
    ) -> Problem:
        """Return the user's held-out entries as a problem."""
        if not (isinstance(validation, tuple) and len(validation) == 3):
            raise TypeError("validation_entries must be a tuple (rows, cols, values)")
        rows, cols, values = validation
        i, unknown_i = _places(rows, entries.row_ids, entries.shape[0], "row")
        j, unknown_j = _places(cols, entries.col_ids, entries.shape[1], "column")
        if len(i) == 0 or (unknown_i | unknown_j).any():
            raise ValueError("validation_entries must hold entries of known rows and columns")
        y = torch.as_tensor(np.asarray(values, dtype=np.float64)).to(problem.values)
        place = (torch.from_numpy(x).to(y.device) for x in (i, j))
        return replace(problem, rows=next(place), cols=next(place), values=y, weights=None)

    def _choices(
        self, problem: Problem, warm: bool
    ) -> tuple[list[float], int | None, float | None]:
        if warm:
            return [self.depth_], min(self.rank_, *problem.shape), self.decay_
        depths = [float(as_depth(self.depth))] if self.depth != "auto" else list(DEPTHS)
        rank = None
        if self.rank != "auto":
            rank = as_rank(self.rank, min(problem.shape), "the smaller side of the table")
        decay = None
        if self.decay != "auto":
            decay = as_positive(self.decay, "decay", zero=True)
        return depths, rank, decay

    def _grown(self, problem: Problem) -> Model | None:
        """Return the first model, with rows of zeros for new rows and columns."""
        model = self.models_[0]
        if model.point is None:
            return None
        p = model.point.point().to(dtype=problem.values.dtype, device=problem.values.device)
        (m, n), (old_m, old_n) = problem.shape, p.shape
        u = torch.cat((p.u, p.u.new_zeros(m - old_m, p.u.shape[1])))
        vh = torch.cat((p.vh, p.vh.new_zeros(p.vh.shape[0], n - old_n)), dim=1)
        return Model(model.offsets, Collapsed.of(EndToEnd(u, p.s, vh, p.depth)))

    def predict(self, X: Any, cols: Any = None, *, interval: float | None = None) -> Any:
        """Return predictions of entries.

        Parameters
        ----------
        X : tuple (rows, cols), or ids of the rows, if `cols` is given
            Ids that the fit did not see are predicted by the means, with one warning.
        cols : array_like, shape (k,), optional
        interval : float in (0, 1), optional
            Return ``(prediction, low, high)``, where a share `interval` of new entries should lie
            within: from the spread of the starts and the errors of held-out entries.

        Returns
        -------
        ndarray, shape (k,), or a tuple of three
        """
        self._check_fitted()
        rows, cols = X if cols is None and is_pair(X) else (X, cols)
        if cols is None:
            raise TypeError("predict needs rows and columns: a tuple (rows, cols), or two vectors")
        i, unknown_i = _places(rows, self.row_ids_, self.shape_[0], "row")
        j, unknown_j = _places(cols, self.col_ids_, self.shape_[1], "column")
        if i.shape != j.shape:
            raise ValueError(f"rows and cols must have one length, got {len(i)} and {len(j)}")
        unknown = int((unknown_i | unknown_j).sum())
        if unknown:
            warn(
                f"{unknown} of {len(i)} entries have a row or column that the fit did not see: "
                "they are predicted by the means",
                UserWarning,
            )
        found = predict_entries(self.models_, self._problem_, i, j, unknown_i, unknown_j)
        return found.mean if interval is None else self._interval(found, interval)

    def _interval(self, found: Predictions, interval: float) -> Any:
        if isinstance(interval, bool) or not 0 < interval < 1:
            raise ValueError(f"interval must lie in (0, 1), got {interval!r}")
        if self._quantiles_ is None:
            raise ValueError("interval needs a fit with validation and the squared loss")
        half = self._quantiles_(interval) * found.scale(self.validation_error_)
        low, high = self._problem_.bounds
        ends = (found.mean - half, found.mean + half)
        return (found.mean, *(np.clip(x, low, high) for x in ends))

    def transform(self, X: Any) -> np.ndarray:
        """Return a matrix (c, n) with its holes filled; known entries stay.

        Every row is completed from its own known entries and the fitted columns, so new rows need
        no new fit.
        """
        self._check_fitted()
        table = as_table(X, "X")
        if table.shape[1] != self.shape_[1]:
            raise ValueError(
                f"X has {table.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.shape_[1]} features as input"
            )
        values = np.array(table.values, dtype=np.float64)
        holes = np.isnan(values)
        which = np.flatnonzero(holes.any(axis=1))
        if len(which):
            part = torch.from_numpy(values[which]).to(self._problem_.values)
            known = ~torch.isnan(part)
            filled = self._folded(known, torch.where(known, part, 0.0))
            values[which] = np.where(holes[which], filled, values[which])
        return values

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> np.ndarray:
        """Fit a matrix and return it with its holes filled, as ``fit(X).transform(X)`` does."""
        return self.fit(X, y, **options).transform(X)

    def complete(self) -> np.ndarray:
        """Return the predictions of all entries of the fitted table, shape (m, n)."""
        self._check_fitted()
        m, n = self.shape_
        total = np.zeros((m, n))
        for model in self.models_:
            z = model.offsets.mean + model.offsets.rows[:, None] + model.offsets.cols
            z = z if model.point is None else z + model.point.matrix
            total += self._problem_.predicted(z).double().cpu().numpy() / len(self.models_)
        return total

    def _folded(self, known: Tensor, values: Tensor) -> np.ndarray:
        noise = self.train_error_ if self.loss == "squared" else 1.0
        parts = [folded(self._problem_, m, noise, known, values) for m in self.models_]
        return torch.stack(parts).mean(0).double().cpu().numpy()

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return R^2 of predictions.

        Of the entries `y` at ``X = (rows, cols)``; or of the known entries of a matrix, each
        predicted by `transform` from four fifths of the others.
        """
        self._check_fitted()
        if y is not None and is_pair(X):
            values, found = np.asarray(y, dtype=np.float64), self.predict(X)
            return _r_squared(values, found, sample_weight)
        table = as_table(X, "X").values
        rows, cols = np.nonzero(~np.isnan(table))
        values, found = table[rows, cols], np.empty(len(rows))
        for fold in range(5):
            hidden = (rows * 2 + cols) % 5 == fold
            part = np.array(table, dtype=np.float64)
            part[rows[hidden], cols[hidden]] = np.nan
            found[hidden] = self.transform(part)[rows[hidden], cols[hidden]]
        return _r_squared(values, found, sample_weight)

    def recommend(self, row: Any, n: int = 10, *, seen: bool = False) -> list[tuple[Any, float]]:
        """Return the `n` columns with the largest predictions for a row, and these.

        Columns with a known entry are left out, unless `seen`.
        """
        self._check_fitted()
        n = as_count(n, "n")
        (i,), unknown = _places([row], self.row_ids_, self.shape_[0], "row")
        if unknown.any():
            raise ValueError(f"row must be one that the fit has seen, got {row!r}")
        cols = np.arange(self.shape_[1])
        none = np.zeros(len(cols), dtype=bool)
        rows = np.full(len(cols), i)
        found = predict_entries(self.models_, self._problem_, rows, cols, none, none).mean
        if not as_flag(seen, "seen"):
            found[self.entries_.cols[self.entries_.rows == i]] = -np.inf
        order = [j for j in np.argsort(-found, kind="stable")[:n] if np.isfinite(found[j])]
        names = self.col_ids_
        return [(int(j) if names is None else names[int(j)], float(found[j])) for j in order]

    def _set_features(self, X: Any, entries: Entries) -> None:
        """Keep what scikit-learn expects of a transformer of matrices."""
        self.n_features_in_ = entries.shape[1]
        names = getattr(X, "columns", None)
        if names is not None and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.asarray(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns of `transform`."""
        self._check_fitted()
        if input_features is not None:
            return np.asarray(input_features, dtype=object)
        plain = [f"x{k}" for k in range(self.n_features_in_)]
        return np.asarray(getattr(self, "feature_names_in_", plain), dtype=object)

    def _check_fitted(self) -> None:
        if hasattr(self, "models_"):
            return
        message = f"this {type(self).__name__} is not fitted yet: call fit first"
        try:
            from sklearn.exceptions import NotFittedError
        except ImportError:
            raise AttributeError(message) from None
        raise NotFittedError(message)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = False
        return tags


def _places(x: Any, ids: Ids | None, count: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return places of ids, and which of them are unknown (their place is 0)."""
    labels = np.asarray(x if not isinstance(x, Tensor) else x.cpu())
    if labels.ndim != 1:
        raise ValueError(f"{what} ids must be a vector, got shape {labels.shape}")
    if ids is not None:
        known = [label in ids for label in labels.tolist()]
        places = [ids.place(x) if ok else 0 for x, ok in zip(labels.tolist(), known, strict=True)]
        return np.array(places, dtype=np.int64), ~np.array(known, dtype=bool)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{what} ids must be places, integers from 0, got {labels.dtype}")
    unknown = (labels < 0) | (labels >= count)
    return np.where(unknown, 0, labels).astype(np.int64), unknown


def _r_squared(values: np.ndarray, found: np.ndarray, weight: Any) -> float:
    w = np.ones_like(values) if weight is None else np.asarray(weight, dtype=np.float64)
    rest = float((w * (values - found) ** 2).sum())
    total = float((w * (values - np.average(values, weights=w)) ** 2).sum())
    return 1.0 - rest / total if total > 0 else float(rest == 0)
