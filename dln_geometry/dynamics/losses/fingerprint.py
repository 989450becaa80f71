"""What tells one loss from another: its data, its name, or its values at fixed points."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from dln_geometry.dynamics.losses.loss import Loss, contract, evaluate
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network

DIRECTIONS = 3
_SEED = 20_240_613


def fingerprint(loss: Loss, start: Collapsed | EndToEnd | Network) -> list[Any]:
    """Return what a store recognises the loss of a run from `start` by: tensors, numbers and texts.

    The loss's own ``fingerprint()`` if it has one that is not None. Otherwise its value and
    gradient at three random matrices, always the same ones, of the norm and the dtype of the
    start, and at the same three of norm 1, to the last digit.

    Examples
    --------
    >>> start = dln.EndToEnd.of([[2.0]], depth=2)
    >>> one, two = dln.losses.Quadratic([[1.0]]), dln.losses.Quadratic([[1.5]])
    >>> dln.losses.fingerprint(one, start) == dln.losses.fingerprint(two, start)
    False
    """
    own = getattr(loss, "fingerprint", None)
    content = None if own is None else own()
    return [type(loss).__qualname__, _answers(loss, start) if content is None else content]


@torch.no_grad()
def _answers(loss: Any, start: Collapsed | EndToEnd | Network) -> list[Any]:
    """Return what a loss answers at fixed random matrices, or the names of its errors."""
    m, n = start.shape
    s = start.singular_values
    norm = float(torch.linalg.vector_norm(s, dim=-1).max())
    move, generator = getattr(loss, "to", None), torch.Generator().manual_seed(_SEED)
    if move is not None:
        loss = move(dtype=start.dtype, device=start.device)
    ask = contract if hasattr(loss, "contract") else lambda f, a, b: evaluate(f, a @ b.mT)
    answers: list[Any] = []
    for _ in range(DIRECTIONS):
        left, right = (
            torch.randn(d, s.shape[-1], generator=generator, dtype=torch.float64, device="cpu")
            for d in (m, n)
        )
        left /= torch.linalg.matrix_norm((left.mT @ left) @ (right.mT @ right)) ** 0.5
        for size in {norm, 1.0} - {0.0}:
            a, b = (
                (size**0.5 * x).to(s).expand(*start.batch_shape, *x.shape) for x in (left, right)
            )
            with warnings.catch_warnings():
                # These matrices may be far from where the loss is meant to be used.
                warnings.simplefilter("ignore")
                try:
                    answers.append(list(ask(loss, a, b)))
                except Exception as error:
                    answers.append(type(error).__name__)
    return answers
