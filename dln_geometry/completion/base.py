"""The conventions of scikit-learn, from scikit-learn where it is installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from dln_geometry.support import warn
from dln_geometry.tables import Ids

if TYPE_CHECKING:
    _Transformer: Any = object
    _Estimator: Any = object
    _NotFitted: Any = AttributeError
else:
    try:
        from sklearn.base import BaseEstimator as _Estimator
        from sklearn.base import TransformerMixin as _Transformer
        from sklearn.exceptions import NotFittedError as _NotFitted
    except ImportError:
        _NotFitted = AttributeError

        class _Transformer:
            """Nothing: `fit_transform` is the completer's own."""

        class _Estimator:
            """Parameters are the arguments of the constructor, kept as they are given."""

            def get_params(self, deep: bool = True) -> dict[str, Any]:
                """Return the parameters by name."""
                return {name: getattr(self, name) for name in _parameters(type(self))}

            def set_params(self, **params: Any) -> Self:
                """Set parameters by name."""
                known = _parameters(type(self))
                for name, value in params.items():
                    if name not in known:
                        raise ValueError(f"parameters must be among {known}, got {name!r}")
                    setattr(self, name, value)
                return self

            def __repr__(self) -> str:
                signature = inspect.signature(type(self)).parameters
                given = [
                    f"{name}={value!r}"
                    for name, value in self.get_params().items()
                    if value is not signature[name].default
                ]
                return f"{type(self).__name__}({', '.join(given)})"


Estimator, Transformer = _Estimator, _Transformer
Read = TypeVar("Read")


def not_fitted(name: str) -> Exception:
    """Return the error of a call that needs a fit."""
    return _NotFitted(f"this {name} is not fitted yet: call fit first")


def _parameters(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls).parameters if name != "self"]


def seed_of(random_state: Any) -> int:
    """Return a seed from None (0, so that fits repeat), an int, or numpy's random state."""
    if random_state is None:
        return 0
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer):
        raise TypeError(f"random_state must be None, an int or numpy's, got {random_state!r}")
    return int(random_state)


def read_in_words(read: Callable[[Any, str], Read], x: Any) -> Read:
    """Return ``read(x, "X")``; what is no real matrix is refused in scikit-learn's words."""
    shape, kind = getattr(x, "shape", None), str(getattr(x, "dtype", ""))
    if isinstance(x, Sequence) and not any(hasattr(part, "__len__") for part in x):
        shape = (len(x),)
    if "complex" in kind:
        raise ValueError(f"X must be real, got {kind}: Complex data not supported")
    if shape is not None and len(shape) < 2:
        raise ValueError(
            f"X must have shape (m, n), got {tuple(shape)}: Expected 2D array, got {len(shape)}D "
            "array instead. Reshape your data using X.reshape(-1, 1) if it has one column, or "
            "X.reshape(1, -1) if it has one row"
        )
    if shape is not None and 0 in shape:
        what = "sample" if shape[0] == 0 else "feature"
        raise ValueError(
            f"Found array with 0 {what}(s) (shape={tuple(shape)}) while a minimum of 1 is required."
        )
    try:
        return read(x, "X")
    except TypeError as error:
        if kind != "object":
            raise
        # The sentence of float(), which scikit-learn lets through.
        raise TypeError(f"{error}: argument must be a string or a real number") from None


def check_features(estimator: Any, width: int, names: Ids | None) -> None:
    """Refuse a matrix whose columns, of these names, are not those of the fit: as scikit-learn."""
    cls, known = type(estimator).__name__, estimator.col_ids_
    if names is not None and known is not None and names != known:
        told = "The feature names should match those that were passed during fit.\n"
        new = [name for name in names if name not in known]
        missing = [name for name in known if name not in names]
        for what, some in (
            ("unseen at fit time", new),
            ("seen at fit time, yet now missing", missing),
        ):
            if some:
                lines = [f"- {name}" for name in sorted(map(str, some))]
                told += "\n".join(
                    (f"Feature names {what}:", *lines[:5], *["- ..."] * (len(lines) > 5))
                )
                told += "\n"
        if not new and not missing:
            told += "Feature names must be in the same order as they were in fit.\n"
        raise ValueError(told)
    if width != estimator.n_features_in_:
        raise ValueError(
            f"X has {width} features, but {cls} is expecting {estimator.n_features_in_} features "
            "as input"
        )
    if hasattr(estimator, "feature_names_in_") and names is None:
        warn(
            f"X does not have valid feature names, but {cls} was fitted with feature names",
            UserWarning,
        )
    elif names is not None and known is None:
        warn(f"X has feature names, but {cls} was fitted without feature names", UserWarning)
