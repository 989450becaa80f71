"""What a fitted completer does: predict entries, complete rows, score and recommend."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.completion.base import (
    Estimator,
    Transformer,
    check_features,
    not_fitted,
    read_in_words,
)
from dln_geometry.completion.features import SideFeatures
from dln_geometry.completion.fitting import Model, Problem, side_means_alone
from dln_geometry.completion.growing import Memory
from dln_geometry.completion.labels import is_pair, labels_of, places_of
from dln_geometry.completion.prediction import Asked, Predictions, filled, folded, predict_entries
from dln_geometry.support import as_count, as_flag, as_float_tensor, sparse_places, warn
from dln_geometry.tables import Entries, Ids, Table, as_entries, as_table


class FittedCompleter(Transformer, Estimator):
    """The methods of a completer that need a fit."""

    loss: str
    models_: tuple[Model, ...]
    shape_: tuple[int, int]
    row_ids_: Ids | None
    col_ids_: Ids | None
    entries_: Entries
    train_error_: float
    validation_error_: float
    n_features_in_: int
    _problem_: Problem
    _quantiles_: Any
    _features_: tuple[SideFeatures | None, SideFeatures | None]
    _memory_: Memory

    def predict(
        self,
        X: Any,
        cols: Any = None,
        *,
        interval: float | None = None,
        row_features: Any = None,
        col_features: Any = None,
    ) -> Any:
        """Return predictions of entries.

        Parameters
        ----------
        X : tuple (rows, cols), or ids of the rows, if `cols` is given; or array_like (c, n)
            Ids that the fit did not see are predicted by the means, with one warning. Of a matrix
            all entries are predicted, known ones too, as `transform` fills the unknown ones.
        cols : array_like, shape (k,), optional
        interval : float in (0, 1), optional
            Return ``(prediction, low, high)``, where a share `interval` of new entries should lie
            within: from the spread of the models and the errors of held-out entries.
        row_features, col_features : array_like, shape (k, p) and (k, q), optional
            Features of the rows and columns that the fit did not see, if it had some: a line for
            each entry (of a matrix, for each row), or a frame whose index has their ids. Those that
            the frames of the fit had besides need not be given again.

        Returns
        -------
        ndarray, shape (k,) or (c, n), or a tuple of three
        """
        self._check_fitted()
        if cols is None and not is_pair(X):
            return self._predict_rows(X, interval, row_features)
        rows, cols = X if cols is None else (X, cols)
        asked = self._asked(rows, cols, row_features, col_features)
        found = predict_entries(self.models_, self._problem_, asked)
        return found.mean if interval is None else self._interval(found, interval)

    def _asked(
        self, rows: Any, cols: Any, row_features: Any = None, col_features: Any = None
    ) -> Asked:
        """Return the places of entries, and features of those that are unknown; tell of others."""
        places, unknown, features, without = [], [], [], []
        sides = zip(
            (rows, cols),
            ("row", "column"),
            (self.row_ids_, self.col_ids_),
            self.shape_,
            self._features_,
            (row_features, col_features),
            strict=True,
        )
        for x, what, ids, count, known, given in sides:
            labels = labels_of(x, what)
            at, new = places_of(labels, ids, count, what)
            found, has = self._found(labels, new, known, given, what)
            for part, one in zip(
                (places, unknown, features, without), (at, new, found, new & ~has), strict=True
            ):
                part.append(one)
        if len(places[0]) != len(places[1]):
            got = f"{len(places[0])} and {len(places[1])}"
            raise ValueError(f"rows and cols must have one length, got {got}")
        if told := int((without[0] | without[1]).sum()):
            warn(
                f"{told} of {len(places[0])} entries have a row or column that the fit did not "
                "see: they are predicted by the means",
                UserWarning,
            )
        return Asked(*places, *unknown, *features)

    def _found(
        self, labels: Any, unknown: np.ndarray, known: SideFeatures | None, given: Any, what: str
    ) -> tuple[Tensor | None, np.ndarray]:
        """Return features of unknown rows or columns, and where there are any."""
        if known is not None:
            return known.found(labels, unknown, given)
        if given is not None:
            raise ValueError(f"{what[:3]}_features need a fit with {what[:3]}_features, got some")
        return None, np.zeros_like(unknown)

    def _predict_rows(self, X: Any, interval: float | None, features: Any) -> np.ndarray:
        if hasattr(X, "tocoo"):
            raise TypeError(
                "predict takes a dense matrix or a tuple (rows, cols), got a sparse matrix: give "
                "the places that are wanted"
            )
        if interval is not None:
            raise ValueError("interval needs a tuple (rows, cols), got a matrix")
        values = self._matrix(X)
        return self._folded(values, self._lines(features, len(values)))

    def _lines(self, given: Any, count: int) -> Tensor | None:
        """Return the features of the rows of a matrix: a line for each."""
        if given is None:
            return None
        given = given.to_numpy() if hasattr(given, "to_numpy") else given
        new = np.ones(count, dtype=bool)
        return self._found([None] * count, new, self._features_[0], given, "row")[0]

    def _matrix(self, X: Any) -> np.ndarray:
        """Return a matrix (c, n) of the fitted columns, NaN where an entry is unknown."""
        table = read_in_words(_as_rows, X)
        check_features(self, table.shape[1], table.columns)
        return np.array(table.values, dtype=np.float64)

    def _interval(self, found: Predictions, interval: float) -> Any:
        if isinstance(interval, bool) or not 0 < interval < 1:
            raise ValueError(f"interval must lie in (0, 1), got {interval!r}")
        if self._quantiles_ is None:
            raise ValueError("interval needs a fit with validation and the squared loss")
        half = self._quantiles_(interval) * found.scale(self.validation_error_)
        low, high = self._problem_.bounds
        ends = (found.mean - half, found.mean + half)
        return (found.mean, *(np.clip(x, low, high) for x in ends))

    def transform(self, X: Any, *, row_features: Any = None) -> np.ndarray:
        """Return a matrix (c, n) with its holes filled; known entries stay.

        Every row is completed from its own known entries and the fitted columns, so new rows need
        no new fit. `row_features` (c, p) are its features, if the fit had some; else they count as
        average.
        """
        self._check_fitted()
        values = self._matrix(X)
        features = self._lines(row_features, len(values))
        holes = np.isnan(values)
        which = np.flatnonzero(holes.any(axis=1))
        if len(which):
            part = torch.from_numpy(which).to(self._problem_.values.device)
            filled = self._folded(values[which], None if features is None else features[part])
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
            z = filled(model, self._problem_)
            total += self._problem_.predicted(z).double().cpu().numpy() / len(self.models_)
        return total

    def _folded(self, values: np.ndarray, features: Tensor | None = None) -> np.ndarray:
        """Return predictions of rows from their known entries, averaged over the models."""
        part = torch.from_numpy(values).to(self._problem_.values)
        known = ~torch.isnan(part)
        part = torch.where(known, part, 0.0)
        noise = self.train_error_ if self.loss == "squared" else 1.0
        parts = [folded(self._problem_, m, noise, known, part, features) for m in self.models_]
        return torch.stack(parts).mean(0).double().cpu().numpy()

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return R^2 of predictions.

        Of the entries `y` at ``X = (rows, cols)``; or of the known entries of a matrix, each
        predicted by `transform` from four fifths of the others.
        """
        self._check_fitted()
        if y is not None and is_pair(X):
            values = as_float_tensor(y, "y", dtype=torch.float64).detach().cpu().numpy()
            if not len(found := self.predict(X)) or values.shape != found.shape:
                got = f"shape {values.shape} for {len(found)}"
                raise ValueError(f"y must hold a number for each of at least one entry, got {got}")
            return _r_squared(values, found, sample_weight)
        table = self._matrix(X)
        rows, cols = np.nonzero(~np.isnan(table))
        values, found = table[rows, cols], np.empty(len(rows))
        for fold in range(5):
            hidden = (rows * 2 + cols) % 5 == fold
            part = np.array(table, dtype=np.float64)
            part[rows[hidden], cols[hidden]] = np.nan
            found[hidden] = self.transform(part)[rows[hidden], cols[hidden]]
        return _r_squared(values, found, sample_weight)

    def errors(self, X: Any, y: Any) -> tuple[float, float]:
        """Return the errors of predictions of entries, and of the side means alone.

        Root mean square errors, or mean log losses, of the entries `y` at ``X = (rows, cols)``.
        """
        self._check_fitted()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # `predict` tells of unknown ids
            asked = self._asked(*X)
        held = replace(
            self._problem_, values=as_float_tensor(y, "y", dtype=torch.float64), weights=None
        )
        alone = Model(side_means_alone(self._problem_, self._problem_.side_means()), None)
        found = [
            predict_entries(models, self._problem_, asked).mean
            for models in (self.models_, (alone,))
        ]
        low, high = (float(held.error(held.before(torch.from_numpy(x)))) for x in found)
        return low, high

    def recommend(self, row: Any, n: int = 10, *, seen: bool = False) -> list[tuple[Any, float]]:
        """Return the `n` columns with the largest predictions for a row, and these.

        Columns with a known entry are left out, unless `seen`.
        """
        self._check_fitted()
        n = as_count(n, "n")
        (i,), unknown = places_of(labels_of([row], "row"), self.row_ids_, self.shape_[0], "row")
        if unknown.any():
            raise ValueError(f"row must be one that the fit has seen, got {row!r}")
        cols = np.arange(self.shape_[1])
        asked = Asked.known(np.full(len(cols), i), cols)
        found = predict_entries(self.models_, self._problem_, asked).mean
        if not as_flag(seen, "seen"):
            found[self.entries_.cols[self.entries_.rows == i]] = -np.inf
        order = [j for j in np.argsort(-found, kind="stable")[:n] if np.isfinite(found[j])]
        names = self.col_ids_
        return [(int(j) if names is None else names[int(j)], float(found[j])) for j in order]

    def _tell_of_empty_sides(self, entries: Entries) -> None:
        empty = [
            count - len(np.unique(places))
            for count, places in zip(entries.shape, (entries.rows, entries.cols), strict=True)
        ]
        if any(empty):
            warn(
                f"{empty[0]} rows and {empty[1]} columns have no known entry: they are predicted "
                "by the means",
                UserWarning,
            )

    def _set_columns(self) -> None:
        """Keep what scikit-learn expects of a transformer of matrices."""
        self.n_features_in_ = self.shape_[1]
        names = self.col_ids_
        if names is not None and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.asarray(names.names, dtype=object)
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
        raise not_fitted(type(self).__name__)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


def _as_rows(x: Any, name: str) -> Table:
    """Return a matrix with holes; of a sparse one, the entries that are not stored."""
    if not sparse_places(x, name):
        return as_table(x, name)
    entries = as_entries(x, name)
    values = np.full(entries.shape, np.nan)
    values[entries.rows, entries.cols] = entries.values
    return Table(values)


def _r_squared(values: np.ndarray, found: np.ndarray, weight: Any) -> float:
    w = np.ones_like(values) if weight is None else np.asarray(weight, dtype=np.float64)
    rest = float((w * (values - found) ** 2).sum())
    total = float((w * (values - np.average(values, weights=w)) ** 2).sum())
    return 1.0 - rest / total if total > 0 else float(rest == 0)
