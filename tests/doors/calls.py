"""One valid call of every public function, and the kind of each of its arguments."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """A function, the arguments of a valid call, and wrong values for some of them by name.

    `arrays` names arguments that take every make of array. A `fresh` argument is made anew.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    wrong: dict[str, list[Any]]
    arrays: tuple[str, ...] = ()
    fresh: dict[str, Callable[[], Any]] = field(default_factory=dict)

    def __call__(self, **changed: Any) -> Any:
        made = {name: make() for name, make in self.fresh.items()}
        return self.function(**{**self.arguments, **made, **changed})


def told(value: Any) -> str:
    """Return a short text of a value."""
    text = " ".join(repr(value).split()) if not isinstance(value, int) else str(value)
    return text[:60]


def faults_of(call: Call) -> list[str]:
    """Try every wrong value; return those accepted, and errors that are raw or name nothing.

    Of two vectors, ``tangent_vec_a`` say, an error may leave out which of them.
    """
    faults = []
    for name, values in call.wrong.items():
        for value in values:
            what = f"{name} = {type(value).__name__} {told(value)}: "
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = call(**{name: value})
            except (TypeError, ValueError) as error:
                if not re.search(rf"\b{re.sub('_[ab]$', '', name)}(_|\b)", str(error)):
                    faults.append(f"{what}unnamed {type(error).__name__}: {str(error)[:110]}")
            except Exception as error:
                faults.append(f"{what}RAW {type(error).__name__}: {str(error)[:110]}")
            else:
                faults.append(f"{what}ACCEPTED, {told(result)}")
    return faults
