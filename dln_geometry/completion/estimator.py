"""`MatrixCompleter`: fill the holes of a table, with the conventions of scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from dln_geometry.completion.base import check_features, seed_of
from dln_geometry.completion.fitting import PATIENCE, SHRINK, Choice, Problem, Search
from dln_geometry.completion.growing import Memory, joined_entries
from dln_geometry.completion.intake import (
    choices_of,
    entries_of,
    held_out,
    problem_of,
    share_of,
)
from dln_geometry.completion.prediction import spread_quantile
from dln_geometry.completion.report import table_of, trials_of
from dln_geometry.completion.saving import SavedCompleter
from dln_geometry.completion.weights import counted
from dln_geometry.support import as_count, as_flag, as_positive
from dln_geometry.tables import Entries


class MatrixCompleter(SavedCompleter):
    r"""Complete a table by deep linear networks that stop at the best validation error.

    The table is modelled as ``mean + b_i + c_j + X_ij``: shrunk means of the sides, and the
    end-to-end matrix X of a balanced deep linear network, which starts small, follows the gradient
    flow of ``1/2 sum_e w_e (model - v)^2 + (k/2) sum_p |W_p|^2`` and keeps the point with the least
    error on held-out entries. Depth, rank and decay k are chosen by that error, then everything is
    trained again on all entries for the time that was best.

    Parameters
    ----------
    depth : float, "auto" or tuple of float
        Depth N >= 1 of the network, real or infinite: 2 is the nuclear norm, larger depths prefer
        lower rank. ``"auto"`` tries 2, 2.5 and 3. Of a tuple of depths, such as ``(2, 2.5)``, there
        are models of each, with a decay of its own, whose predictions are averaged.
    rank : int or "auto"
        Bound on the rank of X.
    decay : float or "auto"
        Weight decay, without units: the force on a small mode relative to the spectral norm of a
        residual without structure. 0.5 is a good guess, 0 none.
    loss : {"squared", "logistic", "poisson"}
        ``"logistic"`` predicts probabilities of entries in [0, 1], ``"poisson"`` means of counts.
    biases : bool
        Fit means of rows and columns beside the global mean.
    shrink : float or "auto"
        Ridge of the side means: as many entries as pull a mean towards 0. ``"auto"`` is 5, or no
        side means where the validation error is less without.
    bounds : None, "observed" or pair of float
        Clip predictions, never the training.
    validation : float
        Share of the entries that is held out; small tables are split several times. 0 trains one
        depth (2.5 if it is ``"auto"``) until the gradient is flat, and again with less decay while
        the residuals show less noise than it was meant for. Where noise alone explains the
        residuals, it warns, and takes depth 2 and decay 1 if these are ``"auto"``.
    refit : bool
        Train on all entries once the choices are made.
    starts : int
        Number of random starts whose predictions are averaged.
    duplicates : {"raise", "mean", "last"}
        What to do with a pair that is given repeatedly.
    patience : int
        Accepted steps without a better validation error that end a flow; half as many above
        300,000 entries.
    rtol : float
        Tolerance of the flows.
    seconds : float, optional
        Limit of the time of `fit`; the best so far is kept. Flows end between two evaluations;
        what comes before the first one, reading and side means, is not cut.
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
    depth_, rank_, decay_ : the choices; depths and decays are tuples if `depth` is one.
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
    >>> options = {"depth": 2, "rank": 1, "decay": 0.01, "shrink": 0.1, "validation": 0.0}
    >>> completer = dln.completion.MatrixCompleter(**options)
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
        shrink: Any = "auto",
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
        weights: Any = None,
        row_features: Any = None,
        col_features: Any = None,
        validation_entries: tuple[Any, Any, Any] | None = None,
    ) -> Self:
        """Fit a table, and return self.

        Parameters
        ----------
        X : array_like (m, n), frame or sparse matrix, or tuple (rows, cols)
            A matrix with holes (NaN, masked, missing; entries that a sparse matrix does not store),
            or ids of rows and columns of the entries `y`: strings, numbers, tuples, ...
        y : array_like, shape (k,), optional
            The entries, if X is ``(rows, cols)``; else ignored.
        weights : array_like, shape (k,) or (m, n), optional
            Weights >= 0 of the entries: as many as `y`, or a matrix (sparse, if X is). An entry of
            weight 2 counts as two, one of weight 0 as unknown.
        row_features, col_features : array_like, shape (m, p) and (n, q), optional
            Known numbers of the sides, whose slopes are fitted with the side means; in the order of
            `row_ids_` and `col_ids_`, but frames are aligned by their index. Rows and columns that
            only the frame has are predicted from their features.
        validation_entries : tuple (rows, cols, values), optional
            Held-out entries to use instead of random ones, of known rows and columns and not among
            the entries of X; they are not trained on without `refit`.
        """
        entries = entries_of(X, y, self.duplicates)
        warm = as_flag(self.warm_start, "warm_start")
        entries, weights = counted(entries, weights)
        features = row_features, col_features
        return self._fit(entries, weights, features, validation_entries, warm=warm)

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        *,
        weights: Any = None,
        row_features: Any = None,
        col_features: Any = None,
    ) -> Self:
        """Add entries, and train on from the present matrices with the choices of the last fit.

        Pairs ``(rows, cols)`` may name new rows and columns; a matrix adds rows, or entries to rows
        of the same name. The newer of two values of one entry counts. Entries that were held out
        stay held out. Features are those of the fit; a side that grows needs them for all of it.
        """
        if not hasattr(self, "models_"):
            features = {"row_features": row_features, "col_features": col_features}
            return self.fit(X, y, weights=weights, **features)
        memory, new = self._memory_, entries_of(X, y, self.duplicates)
        if new.layout != "pairs":
            check_features(self, new.shape[1], new.col_ids)
        new, weights = counted(new, weights)
        entries, weights = joined_entries(memory.entries, new, (memory.weights, weights))
        features = []
        sides = zip(
            (row_features, col_features),
            self._features_,
            (entries.row_ids, entries.col_ids),
            entries.shape,
            strict=True,
        )
        for given, kept, ids, count in sides:
            known = kept.raw(ids, count) if given is None and kept is not None else given
            if known is None and kept is not None:
                raise ValueError(f"{kept.name} must be given for all {count} {kept.name[:3]}s")
            features.append(known)
        return self._fit(entries, weights, tuple(features), None, warm=True)

    def _fit(
        self,
        entries: Entries,
        weights: np.ndarray | None,
        features: Any,
        validation: tuple[Any, Any, Any] | None,
        *,
        warm: bool,
    ) -> Self:
        memory = self._memory_ if warm and hasattr(self, "models_") else None
        biases = as_flag(self.biases, "biases")
        shrink = None if self.shrink == "auto" else as_positive(self.shrink, "shrink")
        if memory is not None and shrink is None:
            biases, shrink = biases and memory.sides, SHRINK
        problem, sides = problem_of(
            entries,
            weights,
            features,
            loss=self.loss,
            biases=biases,
            shrink=shrink,
            bounds=self.bounds,
            dtype=self.dtype,
            device=self.device,
        )
        self._tell_of_empty_sides(entries)
        seed, share = seed_of(self.random_state), share_of(self.validation)
        several = isinstance(self.depth, tuple | list)
        last = None if memory is None else (self.depth_, self.rank_, self.decay_)
        given = self.depth, self.rank, self.decay
        depths, rank, decay = choices_of(*given, problem.shape, last)
        held: Any = share if validation is None else held_out(problem, entries, validation)
        mask, starts = None, (None, None)
        if memory is not None and validation is None and self._goes_on(depths, several, rank):
            bound = min(rank or self.rank_, *problem.shape)
            mask, starts = memory.continued(entries, problem.values, bound, share, seed)
            if mask is not None:
                place = torch.from_numpy(mask).to(problem.values.device)
                held = problem.select(~place), problem.select(place)
        search = Search(
            problem,
            held,
            seed=seed,
            rtol=as_positive(self.rtol, "rtol"),
            patience=as_count(self.patience, "patience"),
            seconds=math.inf if self.seconds is None else as_positive(self.seconds, "seconds"),
            progress=print if as_flag(self.verbose, "verbose") else None,
        )
        choice = search.choose(
            depths,
            rank,
            decay,
            refit=as_flag(self.refit, "refit"),
            starts=as_count(self.starts, "starts"),
            average=several,
            start=starts,
        )
        self.entries_, self.shape_ = entries, entries.shape
        self.row_ids_, self.col_ids_ = entries.row_ids, entries.col_ids
        self._set_results(choice, problem)
        self._set_columns()
        self._features_ = sides
        validated = choice.validated[0].model if choice.validated else None
        held_ones = search.mask if mask is None else mask
        if validated is not None and held_ones is None:
            held_ones = np.zeros(len(problem), dtype=bool)
        self._memory_ = Memory(
            entries, weights, held_ones, validated, self.models_[0], self.biases_
        )
        if self.verbose:
            print(self.report_)
        return self

    def _goes_on(self, depths: list[float], several: bool, rank: int | None) -> bool:
        """Tell whether the matrices of the last fit may be trained on: of one depth, the same."""
        return not several and depths[0] == self.depth_ and (rank or 0) <= self.rank_

    def _set_results(self, choice: Choice, problem: Problem) -> None:
        setting = choice.settings[0]
        self.depth_, self.rank_, self.decay_ = setting.depth, setting.rank, setting.decay
        if isinstance(self.depth, tuple | list):
            self.depth_ = tuple(one.depth for one in choice.settings)
            self.decay_ = tuple(one.decay for one in choice.settings)
        self.biases_ = problem.biases and setting.sides
        self._problem_ = replace(problem, biases=self.biases_)
        self.models_ = tuple(fit.model for fit in choice.fits)
        self.validation_error_, self.side_means_error_ = choice.best, choice.side_means
        self.train_error_ = float(np.mean([fit.train for fit in choice.fits]))
        self.cv_results_ = trials_of(choice)
        self.curve_ = choice.validated[0].curve if choice.validated else ()
        self.n_iter_ = max(fit.evaluations for fit in choice.fits)
        self._quantiles_, self.coverage_ = spread_quantile(choice, problem)
        self.report_ = table_of(choice, problem, self.coverage_)
