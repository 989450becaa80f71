r"""The central flow of gradient descent: its average where it oscillates at the edge of stability.

Where eigenvalues of the Hessian reach ``2 / lr``, iterates oscillate around a smooth path, with a
covariance Sigma that keeps these eigenvalues from rising further. Time is counted in steps:

``dw/dt = -lr [ grad L + (1/2) grad <H, Sigma> ]``,  ``H <= 2/lr``,  ``Sigma >= 0``,
``<2/lr - H, Sigma> = 0``.

With ``Sigma = U X U^T`` on the top eigenvectors U and ``c_ij = grad <u_i, H u_j>`` the eigenvalues
move by ``d(U^T H U)_ij = -lr [ <c_ij, grad L> + (1/2) sum_kl <c_ij, c_kl> X_kl ]``; X is the least
matrix that holds them below ``2/lr``, from a small convex quadratic programme.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    as_finite,
    as_loss,
    flatten,
    gradient_and_value_of,
    unflatten,
    with_exact_derivatives,
)
from dln_geometry.learning.motion.spectrum import DENSE_HESSIAN, flat_product, top_eigenpairs
from dln_geometry.support import as_count, as_observable_value, as_observables, as_positive

_ITERATIONS = 500


@dataclass(frozen=True, eq=False)
class CentralPath:
    """A path of `central_flow`; time is the first axis.

    Attributes
    ----------
    t : Tensor, shape (T,)
        Numbers of steps.
    loss : Tensor, shape (T,)
        At the centre.
    average_loss : Tensor, shape (T,)
        ``L + <H, Sigma> / 2``: the loss of the iterates, averaged over their oscillation.
    sharpness : Tensor, shape (T, modes)
        The largest eigenvalues of the Hessian, descending.
    covariance : Tensor, shape (T, modes, modes)
        Sigma in the eigenvectors of these; its trace is the variance of the iterates.
    params : list of dict
        The centres, one for each time.
    observed : dict of Tensor, shape (T, ...)
        The observables that were asked for, by name.

    Examples
    --------
    >>> loss = lambda p: (p["a"] * p["b"] - 1).square() / 2
    >>> start = {"a": torch.tensor(2.0), "b": torch.tensor(0.1)}
    >>> path = dln.learning.central_flow(loss, 0.1)(start, 4)
    >>> path.t, path.sharpness.shape
    (tensor([0., 1., 2., 3., 4.]), torch.Size([5, 1]))
    """

    t: Tensor
    loss: Tensor
    average_loss: Tensor
    sharpness: Tensor
    covariance: Tensor
    params: list[Parameters]
    observed: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CentralFlow:
    """The central flow of a loss at one learning rate; made by `central_flow`.

    Calling it follows the flow; `velocity` is its velocity at one point.

    Examples
    --------
    >>> flow = dln.learning.central_flow(lambda p: p["q"].square().sum(), 0.1)
    >>> flow.velocity({"q": torch.tensor([1.0, 2.0])})["q"]
    tensor([-0.2000, -0.4000])
    """

    loss: Loss
    lr: float
    modes: int

    def velocity(self, params: Any) -> Parameters:
        """Return ``dw/dt``, in units of steps."""
        q = as_finite(params)
        return unflatten(self._at(q, 1.0)[0], q)

    def __call__(
        self,
        params: Any,
        steps: int,
        *,
        substeps: int = 4,
        save_every: int = 1,
        observe: Mapping[str, Callable[[Parameters], Any]] | None = None,
    ) -> CentralPath:
        """Follow the flow for some steps of gradient descent, each by `substeps` Euler steps.

        One Euler step for each would be gradient descent itself, which oscillates: two at least.
        The state is saved every `save_every` steps, and at the start, with the values of the
        functions `observe` of the parameters, by name.
        """
        observables = as_observables(observe, [one.name for one in fields(CentralPath)])
        q = {name: x.detach() for name, x in as_finite(params).items()}
        steps, substeps = as_count(steps, "steps"), as_count(substeps, "substeps", 2)
        every = as_count(save_every, "save_every")
        saved: list[tuple[Any, ...]] = []
        for n in range(steps + 1):
            for k in range(substeps if n < steps else 1):
                velocity, value, top, x = self._at(q, 1.0 / substeps)
                if k == 0 and n % every == 0:
                    average = value + (top * x.diagonal()).sum() / 2
                    seen = {k: as_observable_value(f(q), k) for k, f in observables.items()}
                    saved.append((float(n), value, average, top, x, q, seen))
                if n < steps:
                    q = unflatten(flatten(q) + velocity / substeps, q)
        t, loss, average, top, x, points, rows = zip(*saved, strict=True)
        like = loss[0]
        times = torch.tensor(t, dtype=like.dtype, device=like.device)
        stacked = [torch.stack(list(values)) for values in (loss, average, top, x)]
        observed = {k: torch.stack([row[k] for row in rows]) for k in observables}
        return CentralPath(times, *stacked, params=list(points), observed=observed)

    def _at(self, q: Parameters, dt: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return velocity, loss, top eigenvalues and X, such that a step of dt keeps the bound."""
        exact = with_exact_derivatives(self.loss)
        gradients, value = gradient_and_value_of(exact)(q)
        if not bool(torch.isfinite(value)):
            raise ValueError(f"loss must be finite along the flow, got {float(value)}")
        g, w = flatten(gradients), flatten(q)
        top, u = top_eigenpairs(flat_product(self.loss, q), w, self.modes)
        m, bound = len(top), 2.0 / self.lr
        velocity, x = -self.lr * g, top.new_zeros(m, m)

        def turn(a: Tensor, b: Tensor) -> Tensor:
            """Return the gradient of ``<a, H b>`` for constant a, b."""

            def slope(y: Tensor) -> Tensor:
                return torch.func.grad(lambda v: exact(unflatten(v, q)))(y) @ a

            return torch.func.grad(lambda z: torch.func.grad(slope)(z) @ b)(w)

        # Modes far below the bound cannot reach it within the step.
        near = top > 0.7 * bound
        if bool(near.any()):
            first, second = torch.triu_indices(m, m, device=w.device)
            both = near[first] & near[second]
            first, second = first[both], second[both]
            pairs = u.mT[first], u.mT[second]
            if len(w) <= DENSE_HESSIAN:
                rows = torch.func.vmap(turn)(*pairs)
            else:
                # Together they would take the memory of all at once.
                rows = torch.stack([turn(*pair) for pair in zip(*pairs, strict=True)])
            c = torch.zeros(m, m, len(w), dtype=w.dtype, device=w.device)
            c[first, second] = c[second, first] = rows
            x = _least_covariance(c, g, (bound - top).diag(), self.lr * dt)
            velocity = velocity - self.lr / 2 * torch.einsum("ij,ijp->p", x, c)
        return velocity, value, top, x


def central_flow(loss: Loss, lr: float, modes: int = 1) -> CentralFlow:
    """Return the central flow of gradient descent: the time average of its iterates.

    Below the edge of stability it is gradient flow; at the edge it keeps the top eigenvalues of the
    Hessian at ``2 / lr``, and tells the covariance of the oscillation as part of its state.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, three times differentiable; of the whole data.
    lr : float
        Learning rate of gradient descent. Weight decay belongs into the loss.
    modes : int
        Number of top eigenvalues that may reach ``2 / lr``.

    Returns
    -------
    CentralFlow
        ``flow(params, steps)`` returns a `CentralPath`.

    References
    ----------
    Cohen et al., Understanding optimization in deep learning with central flows, arXiv 2410.24206.

    Examples
    --------
    A valley that gets steeper along b: gradient descent stops where its curvature is 2 / lr = 4.

    >>> loss = lambda p: p["a"].square() * (1 + p["b"]) - p["b"]
    >>> flow = dln.learning.central_flow(loss, 0.5)
    >>> path = flow({"a": torch.tensor(0.01), "b": torch.tensor(0.0)}, 20)
    >>> path.sharpness[-1].round(decimals=3), path.covariance[-1].round(decimals=3)
    (tensor([4.]), tensor([[1.]]))
    """
    loss, modes = as_loss(loss), as_count(modes, "modes")
    return CentralFlow(loss, as_positive(lr, "lr"), modes)


def _least_covariance(c: Tensor, g: Tensor, slack: Tensor, dt: float) -> Tensor:
    """Return the X >= 0 that keeps ``slack + dt (A + B X)`` at least 0, complementary to it.

    ``A_ij = <c_ij, g>``, ``(B X)_ij = (1/2) sum <c_ij, c_kl> X_kl``: the minimiser of a convex
    quadratic function over positive semi-definite matrices, by accelerated projected gradients.
    """
    m = len(c)
    rows = c.reshape(m * m, -1)
    quadratic = dt / 2 * rows @ rows.mT
    linear = (slack + dt * (c @ g)).reshape(-1)
    size = float(torch.linalg.matrix_norm(quadratic, 2))
    if size == 0.0:
        return torch.zeros_like(slack)
    if m == 1:
        return (-linear / quadratic[0, 0]).clamp_min(0.0).reshape(1, 1)
    x = y = torch.zeros_like(slack)
    momentum = 1.0
    for _ in range(_ITERATIONS):
        slope = (quadratic @ y.reshape(-1) + linear).reshape(m, m)
        values, vectors = torch.linalg.eigh(y - (slope + slope.mT) / (2 * size))
        new = (vectors * values.clamp_min(0.0)) @ vectors.mT
        move = new - x
        if float((move * (y - new)).sum()) > 0:
            # The momentum points uphill: without a restart it oscillates about the minimum.
            momentum = 1.0
        later = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        y, moved = new + (momentum - 1) / later * move, float(move.norm())
        x, momentum = new, later
        if moved <= 1e-12 * float(x.norm()):
            break
    return x
