"""`MatrixCompleter`: fill the holes of a table, with the conventions of scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from dln_geometry.completion.base import seed_of
from dln_geometry.completion.fitted import FittedCompleter
from dln_geometry.completion.intake import entries_of, extended, held_out, problem_of, renamed
from dln_geometry.completion.prediction import spread_quantile
from dln_geometry.completion.problem import Problem
from dln_geometry.completion.report import table_of, trials_of
from dln_geometry.completion.search import DEPTHS, Choice, Search
from dln_geometry.completion.training import PATIENCE, Model
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_count, as_depth, as_flag, as_positive, as_rank
from dln_geometry.tables import Entries


class MatrixCompleter(FittedCompleter):
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
    shrink : float or "auto"
        Ridge of the side means: as many entries as pull a mean towards 0. ``"auto"`` is 5, or no
        side means where the validation error is less without.
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
        return self._fit(entries, sample_weight, (row_features, col_features), validation_entries)

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
        return self._fit(entries, None, (None, None), None, warm=True)

    def _fit(
        self,
        entries: Entries,
        weight: Any,
        features: tuple[Any, Any],
        validation: tuple[Any, Any, Any] | None,
        *,
        warm: bool = False,
    ) -> Self:
        warm = warm or (as_flag(self.warm_start, "warm_start") and hasattr(self, "models_"))
        problem = problem_of(
            entries,
            weight,
            features,
            loss=self.loss,
            biases=as_flag(self.biases, "biases"),
            shrink=None if self.shrink == "auto" else as_positive(self.shrink, "shrink"),
            bounds=self.bounds,
            dtype=self.dtype,
            device=self.device,
        )
        held: Problem | float = self._share()
        if validation is not None:
            held = held_out(problem, entries, validation)
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
        self.biases_ = problem.biases and setting.sides
        self.models_ = tuple(fit.model for fit in choice.fits)
        self.validation_error_, self.side_means_error_ = choice.best, choice.side_means
        self.train_error_ = float(np.mean([fit.train for fit in choice.fits]))
        self.cv_results_ = trials_of(choice)
        self.curve_ = choice.validated[0].curve if choice.validated else ()
        self.n_iter_ = max(fit.evaluations for fit in choice.fits)
        self._quantiles_, self.coverage_ = spread_quantile(choice, problem)
        self.report_ = table_of(choice, problem, self.coverage_)

    def _share(self) -> float:
        share = as_positive(self.validation, "validation", zero=True)
        if not share < 1:
            raise ValueError(f"validation must lie in [0, 1), got {self.validation!r}")
        return share

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
