"""Independent routes to the geodesics of balanced networks, and networks to take them from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry.geometry.points import chain_from_frames
from dln_geometry.geometry.submersion import second_fundamental_form

SPECTRUM = (1.5, 1.5, 0.7)


def network(widths, rank, generator, length=0.5, dtype=torch.float64, batch=()):
    """Return balanced factors, two equal singular values of three, and a tangent vector."""
    spectrum = torch.tensor(SPECTRUM, dtype=torch.float64)[-rank:]
    layers = dln.random_balanced(
        widths, rank=rank, spectrum=spectrum, generator=generator, batch=batch
    )
    layers = tuple(w.to(dtype) for w in layers)
    return layers, vector(layers, generator, length)


def vector(layers, generator, length=0.5):
    """Return a tangent vector, neither horizontal nor vertical."""
    noise = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in layers]
    v = dln.tangent(layers, [a.to(layers[0].dtype) for a in noise])
    return scaled(v, length / size(v))


def size(v):
    """Return the Frobenius norm of all layers."""
    return sum(a.square().sum((-2, -1)) for a in v).sqrt()


def scaled(v, factor):
    factor = torch.as_tensor(factor, dtype=v[0].dtype)[..., None, None]
    return tuple(factor * a for a in v)


def minus(v, w):
    return tuple(a - b for a, b in zip(v, w, strict=True))


def dot(v, w):
    return sum((a * b).sum((-2, -1)) for a, b in zip(v, w, strict=True))


def momenta(layers, v):
    """Return what the rotations of every layer conserve, at the input and the output too."""
    parts = [-layers[0].mT @ v[0]]
    parts += [
        dw @ w.mT - after.mT @ dafter
        for (w, after), (dw, dafter) in zip(pairwise(layers), pairwise(v), strict=True)
    ]
    parts.append(v[-1] @ layers[-1].mT)
    return [0.5 * (a - a.mT) for a in parts]


def stepped_geodesic(layers, rank, *vectors, rtol=1e-11):
    """Return the layers at time 1 and the vectors carried there: scipy on ``W'' = II(W', W')``."""
    shapes = [w.shape for w in layers]
    sizes = [w.numel() for w in layers]

    def cut(flat):
        return [p.reshape(s) for p, s in zip(torch.split(flat, sizes), shapes, strict=True)]

    def near(w):
        # An integrator leaves the manifold by its errors.
        _, lam, vh = torch.linalg.svd(w[0], full_matrices=False)
        frames = [vh[:rank].mT]
        for a in w:
            left, _, right = torch.linalg.svd(a @ frames[-1], full_matrices=False)
            frames.append(left @ right)
        return chain_from_frames(frames, lam[:rank] ** len(w))

    def field(_, y):
        w, *carried = (cut(torch.from_numpy(part.copy())) for part in np.split(y, parts))
        w = near(w)
        moves = [carried[0], *(second_fundamental_form(w, carried[0], a) for a in carried)]
        return torch.cat([x.flatten() for move in moves for x in move]).numpy()

    parts = 1 + len(vectors)
    start = torch.cat([x.flatten() for move in (layers, *vectors) for x in move]).numpy()
    end = solve_ivp(field, (0, 1), start, method="DOP853", rtol=rtol, atol=rtol).y[:, -1]
    return [cut(part) for part in torch.from_numpy(end).chunk(parts)]
