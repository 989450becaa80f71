"""geomstats' own test cases of metrics, unmodified, on the metric of depth N.

Once by themselves, and once against the metric that geomstats makes of a matrix of the cometric,
which is written here as the papers print it.
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
from geomstats.test_cases.geometry.riemannian_metric import (
    RiemannianMetricComparisonTestCase,
    RiemannianMetricTestCase,
)

from manifolds.geomstats_dln import DepthMetric, FixedRankEndToEnd, FullRankEndToEnd

FULL = [
    (2, 2, 1.0),
    (2, 2, 2.0),
    (2, 2, 2.7),
    (2, 2, math.inf),
    (3, 3, 3.0),
    (3, 2, 3.0),
    (2, 4, 2.7),
]
GEODESIC = [
    (2, 2, None, 1.0),
    (2, 2, None, 2.7),
    (2, 2, None, math.inf),
    (3, 2, None, 3.0),
    (3, 3, 2, 2.0),
]
CURVED = [(2, 2, None, 2.7), (3, 2, 1, 3.0)]
FIXED = [(3, 3, 2, 2.0), (3, 2, 1, 3.0), (3, 4, 2, 2.7)]


class MetricData(TestData):
    trials = 1
    # geomstats draws these sizes at random when it is imported.
    N_VEC_REPS = (2,)
    N_RANDOM_POINTS = (1, 3)
    N_TIME_POINTS = (1, 3)

    def inner_product_vec_test_data(self):
        return self.generate_vec_data()

    def inner_product_is_symmetric_test_data(self):
        return self.generate_random_data()

    def inner_coproduct_vec_test_data(self):
        return self.generate_vec_data()

    def metric_matrix_vec_test_data(self):
        return self.generate_vec_data()

    def cometric_matrix_vec_test_data(self):
        return self.generate_vec_data()

    def christoffels_vec_test_data(self):
        return self.generate_vec_data()

    def squared_norm_vec_test_data(self):
        return self.generate_vec_data()

    def norm_vec_test_data(self):
        return self.generate_vec_data()

    def norm_is_positive_test_data(self):
        return self.generate_random_data()

    def normalize_vec_test_data(self):
        return self.generate_vec_data()

    def normalize_is_unitary_test_data(self):
        return self.generate_random_data()

    def geodesic_equation_vec_test_data(self):
        return self.generate_vec_data()


class CurvatureData(TestData):
    trials = 1
    N_VEC_REPS = (2,)
    N_RANDOM_POINTS = (1,)

    def curvature_vec_test_data(self):
        return self.generate_vec_data()

    def directional_curvature_vec_test_data(self):
        return self.generate_vec_data()

    def sectional_curvature_vec_test_data(self):
        return self.generate_vec_data()

    def ricci_tensor_vec_test_data(self):
        return self.generate_vec_data()

    def scalar_curvature_vec_test_data(self):
        return self.generate_vec_data()

    def riemann_tensor_vec_test_data(self):
        return self.generate_vec_data()

    def covariant_riemann_tensor_is_skew_symmetric_1_test_data(self):
        return self.generate_random_data()

    def covariant_riemann_tensor_is_skew_symmetric_2_test_data(self):
        return self.generate_random_data()

    def covariant_riemann_tensor_is_interchange_symmetric_test_data(self):
        return self.generate_random_data()

    def covariant_riemann_tensor_bianchi_identity_test_data(self):
        return self.generate_random_data()


class FullRankMetricData(MetricData):
    def metric_matrix_is_spd_test_data(self):
        return self.generate_random_data()

    def inner_product_derivative_matrix_vec_test_data(self):
        return self.generate_vec_data()


class GeodesicData(TestData):
    trials = 1
    N_VEC_REPS = (2,)
    # One point alone is what the vectorisation compares with.
    N_RANDOM_POINTS = (2,)

    def generate_vec_data_with_time(self, marks=()):
        return self.generate_tests([{"n_reps": 2, "n_times": 3}], marks=marks)

    def generate_random_data_with_time(self, marks=()):
        sizes = [{"n_points": 1, "n_times": 3}, {"n_points": 2, "n_times": 1}]
        return self.generate_tests(sizes, marks=marks)

    def exp_vec_test_data(self):
        return self.generate_vec_data()

    def exp_belongs_test_data(self):
        return self.generate_random_data()

    def log_vec_test_data(self):
        return self.generate_vec_data()

    def log_is_tangent_test_data(self):
        return self.generate_random_data()

    def exp_after_log_test_data(self):
        return self.generate_random_data()

    def log_after_exp_test_data(self):
        return self.generate_random_data()

    def dist_vec_test_data(self):
        return self.generate_vec_data()

    def dist_is_symmetric_test_data(self):
        return self.generate_random_data()

    def dist_is_positive_test_data(self):
        return self.generate_random_data()

    def dist_is_log_norm_test_data(self):
        return self.generate_random_data()

    def dist_point_to_itself_is_zero_test_data(self):
        return self.generate_random_data()

    def dist_triangle_inequality_test_data(self):
        return self.generate_random_data()

    def squared_dist_vec_test_data(self):
        return self.generate_vec_data()

    def squared_dist_is_symmetric_test_data(self):
        return self.generate_random_data()

    def squared_dist_is_positive_test_data(self):
        return self.generate_random_data()

    def geodesic_ivp_vec_test_data(self):
        return self.generate_vec_data_with_time()

    def geodesic_ivp_belongs_test_data(self):
        return self.generate_random_data_with_time()

    def geodesic_bvp_vec_test_data(self):
        return self.generate_vec_data_with_time()

    def geodesic_bvp_belongs_test_data(self):
        return self.generate_random_data_with_time()

    def geodesic_bvp_reverse_test_data(self):
        return self.generate_random_data_with_time()

    def geodesic_boundary_points_test_data(self):
        return self.generate_random_data()

    def exp_geodesic_ivp_test_data(self):
        return self.generate_random_data()

    def parallel_transport_ivp_vec_test_data(self):
        return self.generate_vec_data()

    def parallel_transport_ivp_norm_test_data(self):
        return self.generate_random_data()

    def parallel_transport_ivp_transported_is_tangent_test_data(self):
        return self.generate_random_data()

    def parallel_transport_bvp_vec_test_data(self):
        return self.generate_vec_data()

    def parallel_transport_bvp_norm_test_data(self):
        return self.generate_random_data()

    def parallel_transport_bvp_transported_is_tangent_test_data(self):
        return self.generate_random_data()


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
        # The diagonal is the limit; off it the points are generic.
        same = gs.abs(p - q) < 1e-9 * (p + q)
        gap = gs.where(same, gs.ones_like(p * q), p - q)
        if math.isinf(depth):
            below = gs.log(p) - gs.log(q)
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


def equipped(m, n, rank, depth, rtol=None):
    """Return a space with the metric of a depth; `rank` is None at full rank."""
    if rank is None:
        space = FullRankEndToEnd(m, n, positive_det=m == n)
    else:
        space = FixedRankEndToEnd(m, n, rank)
    return space.equip_with_metric(DepthMetric, depth=depth, rtol=rtol)


@pytest.fixture(scope="class", params=FULL, ids=str)
def full_rank(request, modest_generator):
    m, n, depth = request.param
    request.cls.space = equipped(m, n, None, depth)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("full_rank")
class TestDepthMetric(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = FullRankMetricData()


@pytest.fixture(scope="class", params=FIXED, ids=str)
def fixed_rank(request, modest_generator):
    request.cls.space = equipped(*request.param)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("fixed_rank")
class TestDepthMetricAtFixedRank(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = MetricData()


@pytest.fixture(scope="class", params=GEODESIC, ids=str)
def geodesics(request, modest_generator):
    request.cls.space = equipped(*request.param, rtol=1e-9)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("geodesics")
class TestDepthMetricGeodesics(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = GeodesicData()


@pytest.fixture(scope="class", params=CURVED, ids=str)
def curved(request, modest_generator):
    request.cls.space = equipped(*request.param)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("curved")
class TestDepthMetricCurvature(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = CurvatureData()


@pytest.fixture(scope="class", params=FULL, ids=str)
def two_routes(request, modest_generator):
    m, n, depth = request.param
    cls = request.cls
    cls.space = equipped(m, n, None, depth)
    cls.other_space = Euclidean(m * n, equip=False)
    cls.other_space.equip_with_metric(KroneckerMetric, m=m, n=n, depth=depth)
    cls.point_transformer = Flattener(m, n)
    cls.data_generator = modest_generator(cls.space)


@pytest.mark.usefixtures("two_routes")
class TestDepthMetricAgainstKronecker(
    RiemannianMetricComparisonTestCase, metaclass=DataBasedParametrizer
):
    testing_data = ComparisonData()
