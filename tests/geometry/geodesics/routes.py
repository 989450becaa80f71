"""Independent routes for the tests of connection, geodesics and curvature."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry.geometry.kernel import log_kernel_of_log, log_mixed_kernel
from dln_geometry.support import as_depth


def draw(shape, spectrum, depth, generator, dtype=torch.float64, normalized=None, batch=()):
    """Return a point with this spectrum and Haar singular vectors."""
    pair = dln.Collapsed.random(
        shape,
        len(spectrum),
        depth,
        spectrum=spectrum,
        batch=batch,
        generator=generator,
        dtype=torch.float64,
    )
    point = pair.point()
    s = torch.tensor(spectrum, dtype=dtype).expand(point.s.shape)
    normalized = math.isinf(depth) if normalized is None else normalized
    return dln.EndToEnd(point.u.to(dtype), s, point.vh.to(dtype), depth, normalized, check=False)


def gaussian(shape, generator, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def tangent(point, generator, length=None):
    """Return a random tangent vector, of this length if given."""
    shape = (*point.s.shape[:-1], *point.shape)
    z = dln.cometric(point, gaussian(shape, generator, point.s.dtype))
    if length is None:
        return z
    return z * (length / dln.inner(point, z, z).sqrt())[..., None, None]


def orthonormal_basis(point):
    """Return an orthonormal basis of the tangent space of one point."""
    u, vh = torch.linalg.svd(point.u).U, torch.linalg.svd(point.vh).Vh
    u = torch.cat((point.u, u[:, point.rank :]), -1)
    vh = torch.cat((point.vh, vh[point.rank :]), -2)
    r, vectors = point.rank, []
    for i in range(u.shape[1]):
        for j in range(vh.shape[0]):
            if (i < r and j < r) or (not math.isinf(point.depth) and (i < r or j < r)):
                e = torch.outer(u[:, i], vh[j])
                vectors.append(e / dln.inner(point, e, e).sqrt())
    return vectors


def cometric_matrix(x, shape, depth):
    """Return A as a matrix on vectorised X of full rank; differentiable at distinct values."""
    x = x.reshape(shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    normalized = math.isinf(depth)
    basis = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *shape)
    core = u.mT @ basis @ vh.mT
    depth = as_depth(depth)
    moved = u @ (log_kernel_of_log(s.log(), depth, normalized).exp() * core) @ vh
    mixed = log_mixed_kernel(s.log(), depth, normalized).exp()
    gv, ug = basis @ vh.mT, u.mT @ basis
    moved = moved + ((gv - u @ core) * mixed) @ vh + u @ (mixed[:, None] * (ug - core @ vh))
    return moved.flatten(1)


def christoffel(x, shape, depth):
    """Return the Christoffel symbols, upper index first, by autodiff of the dense metric."""

    def metric(x):
        return torch.linalg.inv(cometric_matrix(x, shape, depth))

    slope = torch.func.jacfwd(metric)(x)
    # lower[k, i, j] = 1/2 (d_i g_jk + d_j g_ik - d_k g_ij)
    lower = 0.5 * (
        torch.einsum("jki->kij", slope)
        + torch.einsum("ikj->kij", slope)
        - torch.einsum("ijk->kij", slope)
    )
    return torch.einsum("lk,kij->lij", cometric_matrix(x, shape, depth), lower)


def riemann_tensor(x, shape, depth):
    """Return ``R^l_kij``: ``R(d_i, d_j) d_k = R^l_kij d_l``, by autodiff."""
    gamma = christoffel(x, shape, depth)
    slope = torch.func.jacfwd(lambda y: christoffel(y, shape, depth))(x)
    first = torch.einsum("ljki->lkij", slope) - torch.einsum("likj->lkij", slope)
    second = torch.einsum("lim,mjk->lkij", gamma, gamma)
    return first + second - second.transpose(-1, -2)


def dense_geodesic(point, z, w, rtol=1e-11):
    """Return the end of a geodesic and a transported vector by scipy and dense Christoffels."""
    shape, size = point.shape, z.numel()
    start = torch.cat([point.matrix.flatten(), z.flatten(), w.flatten()])

    def field(_, y):
        x, v, w = (torch.from_numpy(part.copy()) for part in np.split(y, 3))
        gamma = christoffel(x, shape, point.depth)
        turn = torch.einsum("lij,i->lj", gamma, v)
        return torch.cat([v, -turn @ v, -turn @ w]).numpy()

    end = solve_ivp(field, (0, 1), start.numpy(), method="DOP853", rtol=rtol, atol=rtol).y[:, -1]
    x, v, w = torch.from_numpy(end).reshape(3, *shape)
    assert size == x.numel()
    return x, v, w


def layered_geodesic(factors, velocity, rtol=1e-11):
    """Return layers and velocity at time 1 of a geodesic of the balanced manifold.

    ``W'' = -J^+ d^2 G[W', W']``: the moments G stay zero, and J is their Jacobian.
    """
    shapes = [w.shape for w in factors]
    sizes = [w.numel() for w in factors]

    def moments(flat):
        parts = [p.reshape(s) for p, s in zip(torch.split(flat, sizes), shapes, strict=True)]
        pairs = zip(parts[1:], parts, strict=False)
        return torch.cat([(b.mT @ b - a @ a.mT).flatten() for b, a in pairs])

    def field(_, y):
        w, v = (torch.from_numpy(part.copy()) for part in np.split(y, 2))
        jacobian = torch.func.jacfwd(moments)(w)
        # G is quadratic: its second differential is twice itself.
        normal = torch.linalg.lstsq(jacobian, -2.0 * moments(v), driver="gelsd").solution
        return torch.cat([v, normal]).numpy()

    start = torch.cat([torch.cat([p.flatten() for p in parts]) for parts in (factors, velocity)])
    end = solve_ivp(field, (0, 1), start.numpy(), method="DOP853", rtol=rtol, atol=rtol).y[:, -1]
    w, v = torch.from_numpy(end).chunk(2)
    return tuple(
        tuple(p.reshape(s) for p, s in zip(torch.split(half, sizes), shapes, strict=True))
        for half in (w, v)
    )
