r"""The curvature of the depth-N metric, from first and second variations of the cometric.

For constant covectors, ``Z = A(alpha)`` and ``W = A(beta)``, with ``F_ab = <a, A b>``,

``g(R(Z,W)W, Z) = 1/2 [ZZ F_bb - (ZW + WZ) F_ab + WW F_aa] + 1/4 |dF_ab|^2 - 1/4 <dF_aa, dF_bb>
- 3/4 |[Z,W]|^2``.

In the frames of the point it is a contraction with divided differences of ``p(l)`` up to the third
order: finite at equal singular values, for every real depth and at every rank. Terms of size
``(s_max/s_min)^2`` cancel in it: at a ratio of 1e6 two to four digits are left of sixteen. All is
computed in double precision, for points and vectors of unit size, and scaled: curvatures of
matrices c X are ``c^{-2/N}`` times those of X.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.curvature.frames import CurvatureFrames, multiplied_by_powers
from dln_geometry.geometry.curvature.planes import sum_of_planes
from dln_geometry.geometry.metric import squared_length, tangent_argument, tangent_arguments
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point, real_form, real_point
from dln_geometry.support import refuse_derivatives

# Bounds the memory of a sum over a basis.
_MOST_ENTRIES = 1 << 22


def sectional_curvature(point: EndToEnd | Collapsed, z: Any, w: Any) -> Tensor:
    r"""Return ``g(R(Z,W)W, Z) / (|Z|^2 |W|^2 - g(Z,W)^2)``, shape (...).

    Zero at depth 1, and the same for all `z` and `w` that span one plane. `z` and `w` are tangent
    vectors; parameters and errors as in `metric`. Infinite where it exceeds the range of numbers.

    Raises
    ------
    ValueError
        If the vectors span no plane, or if singular values differ by a factor above 1e7, where
        roundings leave no digit of a curvature.

    References
    ----------
    Micheli, Michor, Mumford, Izv. Math. 77 (2013) (curvature from the cometric).

    Examples
    --------
    >>> eye = torch.eye(2)
    >>> p, z = dln.EndToEnd.of(eye, 2), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    >>> dln.sectional_curvature(p, eye, z)
    tensor(0.)
    """
    p = as_point(point, complex=True)
    z, w = tangent_arguments(p, z=z, w=w)
    if z.is_complex():
        # Of vectors that are longer by sqrt 2 in the real form.
        return 2.0 * sectional_curvature(real_point(p), real_form(z), real_form(w))
    refuse_derivatives("sectional_curvature", *point.tensors, z, w)
    with torch.no_grad():
        frames, unit, _ = CurvatureFrames.at(p, z, w)
        one, two = frames.vectors
        zz, ww = (squared_length(frames.differences, frames.blocks(v)) for v in frames.vectors)
        zw = frames.inner(one, two)
        area = zz * ww - zw.square()
        if bool((area <= 100.0 * torch.finfo(z.dtype).eps * zz * ww).any()):
            raise ValueError("z and w must span a plane, got parallel vectors or a zero")
        value = frames.numerator(one, two) / area
        return multiplied_by_powers(value, (unit, -2.0 / p.depth)).to(p.dtype)


def riemann_curvature(point: EndToEnd | Collapsed, x: Any, y: Any, z: Any, w: Any) -> Tensor:
    r"""Return ``g(R(X,Y)Z, W)``, shape (...), with ``R(X,Y) = [nabla_X, nabla_Y] - nabla_[X,Y]``.

    By polarisation of ``g(R(X,Y)Y, X)``. Parameters and errors as in `sectional_curvature`.

    Examples
    --------
    >>> e = torch.eye(2)
    >>> dln.riemann_curvature(dln.EndToEnd.of(e, 1), e, e, e, e)
    tensor(0.)
    """
    p = as_point(point, complex=True)
    vectors = tangent_arguments(p, x=x, y=y, z=z, w=w)
    if vectors[0].is_complex():
        return 0.5 * riemann_curvature(real_point(p), *(real_form(v) for v in vectors))
    refuse_derivatives("riemann_curvature", *point.tensors, *vectors)
    with torch.no_grad():
        frames, unit, sizes = CurvatureFrames.at(p, *vectors)
        a, b, c, d = frames.vectors
        total = torch.zeros_like(frames.inner(a, b))
        for sign, one, two in ((1.0, d, c), (-1.0, c, d)):
            for s, t in itertools.product((1.0, -1.0), repeat=2):
                total = total + sign * s * t * frames.numerator(a + s * one, b + t * two)
        powers = *((size, 1.0) for size in sizes), (unit, 2.0 / p.depth - 4.0)
        return multiplied_by_powers(total / 24.0, *powers).to(p.dtype)


def ricci_curvature(point: EndToEnd | Collapsed, z: Any, w: Any = None) -> Tensor:
    r"""Return the Ricci curvature ``Ric(Z, W)``, or ``Ric(Z, Z)``, shape (...).

    The sum of ``g(R(E,Z)W, E)`` over an orthonormal basis of the tangent space, over the real
    numbers for complex points too; at infinite depth, of the matrices with the same range and
    corange. `z` and `w` are tangent vectors, `w`
    is `z` by default; errors as in `metric`.

    Examples
    --------
    >>> dln.ricci_curvature(dln.EndToEnd.of(torch.eye(2), 1), torch.eye(2))
    tensor(0.)
    """
    p = as_point(point, complex=True)
    z = tangent_argument(p, z, "z")
    w = z if w is None else tangent_arguments(p, z=z, w=w)[1]
    refuse_derivatives("ricci_curvature", *point.tensors, z, w)
    with torch.no_grad():
        frames, unit, sizes = CurvatureFrames.at(p, z, w)
        one, two = frames.vectors
        total = torch.zeros_like(frames.inner(one, two))
        vectors = frames.basis()
        at_once = max(1, _MOST_ENTRIES // (max(1, total.numel()) * frames.size**3))
        for begin in range(0, len(vectors), at_once):
            part = vectors[begin : begin + at_once]
            e = torch.stack([vector for vector, _ in part])
            weights = total.new_tensor([count for _, count in part])
            if w is z:
                value = frames.numerator(e, one)
            else:
                value = frames.numerator(e, one + two) - frames.numerator(e, one - two)
                value = 0.25 * value
            total = total + torch.tensordot(weights, value, dims=1)
        # Numerators of real forms are twice those of complex vectors.
        total = 0.5 * total if frames.complex else total
        powers = *((size, 1.0) for size in sizes), (unit, -2.0)
        return multiplied_by_powers(total, *powers).to(p.s.dtype)


def scalar_curvature(point: EndToEnd | Collapsed) -> Tensor:
    r"""Return the scalar curvature, shape (...), twice the sum of the sectional curvatures.

    Planes of basis vectors ``sqrt(a_ij) u_i v_j^T`` that share no index are flat; those of the
    others are known in closed form (`planes`): ``O(r^3)`` operations at any shape.

    Parameters and errors as in `sectional_curvature`.

    Examples
    --------
    >>> dln.scalar_curvature(dln.EndToEnd.of(torch.eye(3), 1))
    tensor(0.)
    """
    p = as_point(point, complex=True)
    # Refuses zero singular values.
    tangent_argument(p, torch.zeros_like(p.matrix), "z")
    refuse_derivatives("scalar_curvature", *point.tensors)
    with torch.no_grad():
        return sum_of_planes(p)
