r"""The centre of SGD with minibatches, and the second moments of its iterates around it.

Iterates are ``w + U y`` with the top eigenvectors U of the Hessian of the mean loss. A step draws a
batch b, with the curvature ``A_b = U^T H_b U`` and the noise ``xi_b = U^T (g_b - g)``, and moves
``y+ = M_b y + n_b``: for plain SGD ``M_b = 1 - lr A_b``, ``n_b = -lr xi_b``; with momentum y is
joined by the deviation of the buffer from its slow value ``g / (1 - b)``. To n_b is added by what
the step of the centre itself differs from the flow. Second moments ``Z = E[y y^T]`` and the mean d
obey

``Z+ = mean_b (M_b Z M_b^T + M_b d n_b^T + n_b d^T M_b^T + n_b n_b^T)``,
``d+ = mean_b (M_b d + n_b)``,

and the centre moves by ``dw/dt = -rate (g + F)``, ``F = grad <H, U X U^T> / 2``, X the block of Z.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    flatten,
    gradient_and_value_of,
    unflatten,
    with_exact_derivatives,
)
from dln_geometry.learning.motion.spectrum import curvature_slopes, flat_product, top_eigenpairs
from dln_geometry.learning.rules import Rule


class NoisySteps:
    """The centre and the second moments of the steps of a rule on minibatches.

    `whole` is the mean of `batches`, with the decay of the rule.
    """

    def __init__(self, whole: Loss, batches: Sequence[Loss], rule: Rule, modes: int) -> None:
        self.whole, self.rule, self.modes = with_exact_derivatives(whole), rule, modes
        self.batches = [with_exact_derivatives(f) for f in batches]
        self.rate = rule.time_step / rule.friction

    def follow(
        self, q: Parameters, steps: int, substeps: int
    ) -> Iterator[tuple[Parameters, Tensor, Tensor, Tensor]]:
        """Yield the centre, loss, top eigenvalues and X of every step."""
        top, u = self._modes(q)
        k, size = len(top), len(top) * (2 if self.rule.momentum else 1)
        z, d = u.new_zeros(size, size), u.new_zeros(size)
        g, value = self._gradient(q)
        for n in range(steps + 1):
            x = z[:k, :k]
            yield q, value, top, x
            if n == steps:
                return
            force = self._force(q, u, x)
            later, slow = flatten(q), g + force
            for j in range(substeps):
                if j:
                    point = unflatten(later, q)
                    slow = self._gradient(point)[0] + self._force(point, u, x)
                later = later - self.rate / substeps * slow
            maps, kicks, ahead, share = self._maps(q, u)
            slip = [u.mT @ (flatten(q) - later - self.rate * g) - ahead * (u.mT @ force)]
            q, before, turn = unflatten(later, q), g, u
            (top, u), (g, value) = self._modes(q), self._gradient(q)
            if self.rule.momentum:
                change = (before - g) / self.rule.friction
                slip.append(share * (turn.mT @ (change + force)))
            kicks, pushed = kicks + torch.cat(slip), maps @ d
            mixed = pushed.mT @ kicks / len(kicks)
            z = (maps @ z @ maps.mT).mean(0) + mixed + mixed.mT + kicks.mT @ kicks / len(kicks)
            # From the old eigenvectors to the new ones.
            into = torch.block_diag(*[u.mT @ turn] * (size // k))
            z, d = into @ z @ into.mT, into @ (pushed + kicks).mean(0)

    def resting_velocity(self, q: Parameters) -> Tensor:
        """Return ``dw/dt`` at the second moments that a centre at rest would have."""
        top, u = self._modes(q)
        maps, kicks, _, _ = self._maps(q, u)
        n = maps.shape[-1]
        spread = torch.einsum("bij,bkl->ikjl", maps, maps).reshape(n * n, n * n) / len(maps)
        if not float(torch.linalg.eigvals(spread).abs().max()) < 1:
            raise ValueError(
                "params must be where second moments are stable, got a point beyond the edge: "
                "follow the flow"
            )
        source = ((kicks.mT @ kicks) / len(kicks)).reshape(-1)
        eye = torch.eye(n * n, dtype=u.dtype, device=u.device)
        z = torch.linalg.solve(eye - spread, source).reshape(n, n)
        x = z[: len(top), : len(top)]
        return -self.rate * (self._gradient(q)[0] + self._force(q, u, x))

    def _modes(self, q: Parameters) -> tuple[Tensor, Tensor]:
        return top_eigenpairs(flat_product(self.whole, q), flatten(q), self.modes)

    def _gradient(self, q: Parameters) -> tuple[Tensor, Tensor]:
        gradients, value = gradient_and_value_of(self.whole)(q)
        if not bool(torch.isfinite(value)):
            raise ValueError(f"loss must be finite along the flow, got {float(value)}")
        return flatten(gradients), value

    def _force(self, q: Parameters, u: Tensor, x: Tensor) -> Tensor:
        """Return ``grad <H, U X U^T> / 2``."""
        if not bool(torch.isfinite(x).all()):
            raise ValueError("second moments must be finite, got moments that grow without bound")
        if not bool(x.any()):
            return u.new_zeros(len(u))
        sizes, vectors = torch.linalg.eigh((x + x.mT) / 2)
        along = (u @ vectors).mT
        return sizes / 2 @ curvature_slopes(self.whole, q, along, along)

    def _maps(self, q: Parameters, u: Tensor) -> tuple[Tensor, Tensor, float, float]:
        """Return ``M_b`` and ``n_b`` of all batches, shapes (m, n, n) and (m, n).

        Third and fourth come the shares with which a gradient enters parameters and buffer at once.
        """
        rule, rows = self.rule, []
        curved = []
        for f in self.batches:
            product = flat_product(f, q)
            curved.append(u.mT @ torch.stack([product(v) for v in u.mT], 1))
            rows.append(u.mT @ flatten(gradient_and_value_of(f)(q)[0]))
        xi = torch.stack(rows)
        xi = xi - xi.mean(0)
        eye = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        a = torch.stack(curved)
        a = (a + a.mT) / 2 + rule.weight_decay * eye
        lr, b = rule.lr, rule.momentum
        if not b:
            return eye - lr * a, -lr * xi, lr, 0.0
        share = rule.time_step / lr
        # v+ = b v + share (A y + xi); y+ = y - lr v+, or Nesterov's y - lr (A y + xi + b v+).
        early, late = (1.0, b) if rule.nesterov else (0.0, 1.0)
        ahead, own = lr * (early + late * share), (lr * late * b * eye).expand_as(a)
        above = torch.cat([eye - ahead * a, -own], -1)
        below = torch.cat([share * a, (b * eye).expand_as(a)], -1)
        kicks = torch.cat([-ahead * xi, share * xi], -1)
        return torch.cat([above, below], -2), kicks, ahead, share
