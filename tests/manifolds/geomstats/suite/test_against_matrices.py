"""The metric of depth N against the one that geomstats makes of a matrix of the cometric.

The matrix is written here as the papers print it.
"""

from __future__ import annotations

import math

import geomstats.backend as gs
import pytest
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.riemannian_metric import RiemannianMetric
from geomstats.numerics.geodesic import ExpODESolver
from geomstats.numerics.ivp import GSIVPIntegrator
from geomstats.test.data import TestData
from geomstats.test.parametrizers import DataBasedParametrizer
from geomstats.test.utils import PointTransformer
from geomstats.test_cases.geometry.riemannian_metric import RiemannianMetricComparisonTestCase

FULL = [
    (2, 2, None, 1.0),
    (2, 2, None, 2.0),
    (2, 2, None, 2.7),
    (2, 2, None, math.inf),
    (3, 3, None, 3.0),
    (3, 2, None, 3.0),
    (2, 4, None, 2.7),
]
FIXED_SPACES = [
    (3, 3, 2, math.inf, "fixed spaces"),
    (3, 2, 2, math.inf, "fixed spaces"),
    (3, 3, 2, 2.7, "fixed spaces"),
]


class ComparisonData(TestData):
    trials = 1
    N_RANDOM_POINTS = (1, 2)
    N_TIME_POINTS = (2,)

    def metric_matrix_random_test_data(self):
        return self.generate_random_data()

    def cometric_matrix_random_test_data(self):
        return self.generate_random_data()

    def inner_product_derivative_matrix_random_test_data(self):
        return self.generate_random_data()

    def christoffels_random_test_data(self):
        return self.generate_random_data()

    def inner_product_random_test_data(self):
        return self.generate_random_data()

    def inner_coproduct_random_test_data(self):
        return self.generate_random_data()

    def squared_norm_random_test_data(self):
        return self.generate_random_data()

    def norm_random_test_data(self):
        return self.generate_random_data()

    def exp_random_test_data(self):
        return self.generate_random_data()


class KroneckerMetric(RiemannianMetric):
    """What geomstats makes of a matrix of the cometric, on flattened matrices."""

    def __init__(self, space, m, n, depth):
        super().__init__(space)
        self.m, self.n, self.depth = m, n, depth
        self.exp_solver = ExpODESolver(space, GSIVPIntegrator(n_steps=10, step_type="rk4"))

    def cometric_matrix(self, base_point=None):
        # The host compares metrics on matrices, too, without transforming them.
        x = gs.reshape(base_point, (-1, self.m, self.n))
        batch = base_point.shape[: -2 if base_point.shape[-2:] == (self.m, self.n) else -1]
        xt = gs.transpose(x, (0, 2, 1))
        p, u = gs.linalg.eigh(gs.matmul(x, xt))
        q, v = gs.linalg.eigh(gs.matmul(xt, x))
        p, q = p[:, :, None] * (p > 1e-12)[:, :, None], q[:, None, :] * (q > 1e-12)[:, None, :]
        kernel = self._kernel(p, q)
        mat = gs.einsum("bik,bkl,bjk,bml,bnl->bimjn", u, kernel, u, v, v)
        return gs.reshape(mat, (*batch, self.m * self.n, self.m * self.n))

    def _kernel(self, p, q):
        depth = self.depth
        if float(depth).is_integer():
            terms = range(1, int(depth) + 1)
            return sum(p ** ((depth - k) / depth) * q ** ((k - 1) / depth) for k in terms)
        # The diagonal is the limit; off it the points are generic, but for zeros.
        same = gs.abs(p - q) <= 1e-9 * (p + q)
        gap = gs.where(same, gs.ones_like(p * q), p - q)
        if math.isinf(depth):
            below = gs.log(gs.where(p > 0, p, 1e-300)) - gs.log(gs.where(q > 0, q, 1e-300))
            return gs.where(same, p + 0 * q, gap / gs.where(same, gs.ones_like(gap), below))
        below = p ** (1 / depth) - q ** (1 / depth)
        limit = depth * p ** (1 - 1 / depth) + 0 * q
        return gs.where(same, limit, gap / gs.where(same, gs.ones_like(gap), below))

    def metric_matrix(self, base_point=None):
        return gs.linalg.inv(self.cometric_matrix(base_point))

    def inner_product_derivative_matrix(self, base_point=None):
        # The host's own derivative needs a backend with autodiff. Fourth order in h.
        x = gs.reshape(base_point, (-1, self.m * self.n))
        batch = base_point.shape[: -2 if base_point.shape[-2:] == (self.m, self.n) else -1]
        h, columns = 1e-3, []
        for k in range(self.m * self.n):
            e = h * gs.eye(self.m * self.n)[k]
            near = self.metric_matrix(x + e) - self.metric_matrix(x - e)
            far = self.metric_matrix(x + 2 * e) - self.metric_matrix(x - 2 * e)
            columns.append((8 * near - far) / (12 * h))
        stacked = gs.stack(columns, axis=-1)
        return gs.reshape(stacked, (*batch, *stacked.shape[1:]))


class CutKroneckerMetric(KroneckerMetric):
    """The same, cut down to the matrices ``U Y V^T`` between two spaces, and its inverse there."""

    def __init__(self, space, m, n, depth, left, right):
        super().__init__(space, m, n, depth)
        self.flat = gs.reshape(gs.einsum("ia,jb->ijab", left, right), (m * n, -1))

    def cometric_matrix(self, base_point=None):
        across = gs.matmul(self.flat, self.flat.T)
        matrices = base_point.shape[-2:] == (self.m, self.n)
        x = gs.reshape(base_point, (*base_point.shape[:-2], -1)) if matrices else base_point
        # A move of one entry leaves the spaces.
        cometric = super().cometric_matrix(gs.einsum("kl,...l->...k", across, x))
        return gs.einsum("ik,...kl,lj->...ij", across, cometric, across)

    def metric_matrix(self, base_point=None):
        cometric = self.cometric_matrix(base_point)
        core = gs.linalg.inv(gs.einsum("ka,...kl,lb->...ab", self.flat, cometric, self.flat))
        return gs.einsum("ia,...ab,jb->...ij", self.flat, core, self.flat)


class Flattener(PointTransformer):
    def __init__(self, m, n):
        self.shape = (m, n)

    def transform_point(self, point):
        return gs.reshape(point, (*point.shape[:-2], -1))

    def inverse_transform_point(self, other_point):
        return gs.reshape(other_point, (*other_point.shape[:-1], *self.shape))

    def transform_tangent_vec(self, tangent_vec, base_point):
        return self.transform_point(tangent_vec)

    def inverse_transform_tangent_vec(self, other_tangent_vec, other_base_point):
        return self.inverse_transform_point(other_tangent_vec)


@pytest.fixture(scope="class", params=FULL + FIXED_SPACES, ids=str)
def two_routes(request, equipped, modest_generator):
    m, n, _, depth, *kind = request.param
    cls = request.cls
    cls.space = equipped(*request.param)
    cls.other_space = Euclidean(m * n, equip=False)
    if kind:
        spaces = {"left": cls.space.left, "right": cls.space.right}
        cls.other_space.equip_with_metric(CutKroneckerMetric, m=m, n=n, depth=depth, **spaces)
    else:
        cls.other_space.equip_with_metric(KroneckerMetric, m=m, n=n, depth=depth)
    cls.point_transformer = Flattener(m, n)
    cls.data_generator = modest_generator(cls.space)


@pytest.mark.usefixtures("two_routes")
class TestDepthMetricAgainstKronecker(
    RiemannianMetricComparisonTestCase, metaclass=DataBasedParametrizer
):
    testing_data = ComparisonData()
