from __future__ import annotations

import types
import warnings

import dln_geometry
from dln_geometry.support import warn


def deep(levels):
    """Warn from a function of the library that is so many calls deep."""
    source = "def f(n, g):\n    return g('deep') if n == 0 else f(n - 1, g)\n"
    name = dln_geometry.__file__.replace("__init__", "deep")
    module = types.ModuleType("deep")
    exec(compile(source, name, "exec"), module.__dict__)
    module.f(levels, warn)


def test_the_line_of_the_user_is_named_at_any_depth():
    for levels in (0, 1, 5):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            deep(levels)
        assert [w.filename for w in caught] == [__file__]
        assert caught[0].category is UserWarning
