"""geomstats' own test cases of metrics, unmodified, on the metric of depth N."""

from __future__ import annotations

import math

import pytest
from geomstats.test.data import TestData
from geomstats.test.parametrizers import DataBasedParametrizer
from geomstats.test_cases.geometry.riemannian_metric import RiemannianMetricTestCase

FULL = [
    (2, 2, None, 1.0),
    (2, 2, None, 2.0),
    (2, 2, None, 2.7),
    (2, 2, None, math.inf),
    (3, 3, None, 3.0),
    (3, 2, None, 3.0),
    (2, 4, None, 2.7),
]
GEODESIC = [
    (2, 2, None, 1.0),
    (2, 2, None, 2.7),
    (2, 2, None, math.inf),
    (3, 2, None, 3.0),
    (3, 3, 2, 2.0),
    (3, 2, 1, 1.0),
    (3, 4, 2, math.inf, "fixed spaces"),
]
CURVED = [
    (2, 2, None, 2.7),
    (3, 2, 1, 3.0),
    (3, 2, 2, math.inf, "fixed spaces"),
]
FIXED = [(3, 3, 2, 2.0), (3, 2, 1, 3.0), (3, 4, 2, 2.7), (3, 3, 2, 1.0)]
FIXED_SPACES = [
    (3, 3, 2, 1.0, "fixed spaces"),
    (3, 3, 2, math.inf, "fixed spaces"),
    (4, 3, 2, 2.7, "fixed spaces"),
    (2, 2, 2, math.inf, "fixed spaces"),
]


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


class FixedSpacesMetricData(MetricData):
    def inner_product_derivative_matrix_vec_test_data(self):
        return self.generate_vec_data()


class FullRankMetricData(FixedSpacesMetricData):
    def metric_matrix_is_spd_test_data(self):
        return self.generate_random_data()


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


@pytest.fixture(scope="class", params=FULL, ids=str)
def full_rank(request, equipped, modest_generator):
    request.cls.space = equipped(*request.param)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("full_rank")
class TestDepthMetric(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = FullRankMetricData()


@pytest.fixture(scope="class", params=FIXED, ids=str)
def fixed_rank(request, equipped, modest_generator):
    request.cls.space = equipped(*request.param)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("fixed_rank")
class TestDepthMetricAtFixedRank(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = MetricData()


@pytest.fixture(scope="class", params=FIXED_SPACES, ids=str)
def fixed_spaces(request, equipped, modest_generator):
    request.cls.space = equipped(*request.param)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("fixed_spaces")
class TestDepthMetricBetweenFixedSpaces(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = FixedSpacesMetricData()


@pytest.fixture(scope="class", params=GEODESIC, ids=str)
def geodesics(request, equipped, modest_generator):
    request.cls.space = equipped(*request.param, rtol=1e-9)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("geodesics")
class TestDepthMetricGeodesics(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = GeodesicData()


@pytest.fixture(scope="class", params=CURVED, ids=str)
def curved(request, equipped, modest_generator):
    request.cls.space = equipped(*request.param)
    request.cls.data_generator = modest_generator(request.cls.space)


@pytest.mark.usefixtures("curved")
class TestDepthMetricCurvature(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = CurvatureData()
