"""The conventions of scikit-learn, from scikit-learn where it is installed."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self

import numpy as np

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
        _Transformer = object
        _NotFitted = AttributeError

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
