"""geomstats' own test cases of bundles, group actions and quotients, unmodified, on ours."""

from __future__ import annotations

import pytest
from geomstats.test.data import TestData
from geomstats.test.parametrizers import DataBasedParametrizer
from geomstats.test.random import RandomDataGenerator
from geomstats.test_cases.geometry.fiber_bundle import FiberBundleTestCase
from geomstats.test_cases.geometry.group_action import GroupActionTestCase
from geomstats.test_cases.geometry.quotient_metric import QuotientMetricTestCase
from geomstats.test_cases.geometry.riemannian_metric import (
    RiemannianMetricComparisonTestCase,
    RiemannianMetricTestCase,
)

from manifolds.geomstats_dln import BalancedNetworks, HiddenRotationAction

NETWORKS = [
    ((2, 2, 2), None, True),
    ((2, 2, 2, 2), None, True),
    ((2, 4, 3), None, False),
    ((3, 3, 2, 4), 2, False),
    ((3, 2), None, False),
    ((2, 1, 3), None, False),
    ((3, 2), 1, False),
]


def quotient(widths, rank, positive_det):
    """Return the total space, equipped with everything."""
    total = BalancedNetworks(widths, rank, positive_det)
    total.equip_with_group_action(HiddenRotationAction(widths))
    total.equip_with_quotient()
    return total


class SuiteData(TestData):
    trials = 1
    # geomstats draws these sizes at random when it is imported.
    N_VEC_REPS = (2,)
    N_RANDOM_POINTS = (1, 2)
    N_TIME_POINTS = (3,)


class BundleData(SuiteData):
    def riemannian_submersion_vec_test_data(self):
        return self.generate_vec_data()

    def riemannian_submersion_belongs_to_base_test_data(self):
        return self.generate_random_data()

    def lift_vec_test_data(self):
        return self.generate_vec_data()

    def lift_belongs_to_total_space_test_data(self):
        return self.generate_random_data()

    def riemannian_submersion_after_lift_test_data(self):
        return self.generate_random_data()

    def tangent_riemannian_submersion_vec_test_data(self):
        return self.generate_vec_data()

    def tangent_riemannian_submersion_is_tangent_test_data(self):
        return self.generate_random_data()

    def align_vec_test_data(self):
        return self.generate_vec_data()

    def log_after_align_is_horizontal_test_data(self):
        return self.generate_random_data()

    def horizontal_projection_vec_test_data(self):
        return self.generate_vec_data()

    def horizontal_projection_is_horizontal_test_data(self):
        return self.generate_random_data()

    def vertical_projection_vec_test_data(self):
        return self.generate_vec_data()

    def vertical_projection_is_vertical_test_data(self):
        return self.generate_random_data()

    def tangent_riemannian_submersion_after_vertical_projection_test_data(self):
        return self.generate_random_data()

    def is_horizontal_vec_test_data(self):
        return self.generate_vec_data()

    def is_vertical_vec_test_data(self):
        return self.generate_vec_data()

    def horizontal_lift_vec_test_data(self):
        return self.generate_vec_data()

    def horizontal_lift_is_horizontal_test_data(self):
        return self.generate_random_data()

    def tangent_riemannian_submersion_after_horizontal_lift_test_data(self):
        return self.generate_random_data()

    def integrability_tensor_vec_test_data(self):
        return self.generate_vec_data()


class ActionData(SuiteData):
    def identity_action_test_data(self):
        return self.generate_random_data()

    def action_vec_test_data(self):
        return self.generate_vec_data()

    def inverse_action_test_data(self):
        return self.generate_random_data()


class QuotientData(SuiteData):
    # One point alone is what the vectorisation compares with.
    N_RANDOM_POINTS = (2,)

    def inner_product_vec_test_data(self):
        return self.generate_vec_data()

    def inner_product_is_symmetric_test_data(self):
        return self.generate_random_data()

    def norm_is_positive_test_data(self):
        return self.generate_random_data()

    def normalize_is_unitary_test_data(self):
        return self.generate_random_data()

    def exp_vec_test_data(self):
        return self.generate_vec_data()

    def exp_belongs_test_data(self):
        return self.generate_random_data()

    def geodesic_ivp_vec_test_data(self):
        return self.generate_vec_data_with_time()

    def geodesic_ivp_belongs_test_data(self):
        return self.generate_random_data_with_time()

    def exp_geodesic_ivp_test_data(self):
        return self.generate_random_data()

    def log_vec_test_data(self):
        return self.generate_vec_data()

    def exp_after_log_test_data(self):
        return self.generate_random_data()

    def log_after_exp_test_data(self):
        return self.generate_random_data()

    def log_is_tangent_test_data(self):
        return self.generate_random_data()

    def squared_dist_is_symmetric_test_data(self):
        return self.generate_random_data()

    def dist_is_log_norm_test_data(self):
        return self.generate_random_data()

    def dist_point_to_itself_is_zero_test_data(self):
        return self.generate_random_data()

    def geodesic_boundary_points_test_data(self):
        return self.generate_random_data()

    def geodesic_bvp_reverse_test_data(self):
        return self.generate_random_data_with_time()

    def parallel_transport_ivp_norm_test_data(self):
        return self.generate_random_data()


class TotalData(QuotientData):
    def geodesic_equation_vec_test_data(self):
        return self.generate_vec_data()

    def curvature_vec_test_data(self):
        return self.generate_vec_data()

    def sectional_curvature_vec_test_data(self):
        return self.generate_vec_data()

    def parallel_transport_ivp_vec_test_data(self):
        return self.generate_vec_data()

    def parallel_transport_ivp_transported_is_tangent_test_data(self):
        return self.generate_random_data()


class ComparisonData(SuiteData):
    N_RANDOM_POINTS = (2,)

    def inner_product_random_test_data(self):
        return self.generate_random_data()

    def exp_random_test_data(self):
        return self.generate_random_data()

    def log_random_test_data(self):
        return self.generate_random_data()

    def squared_dist_random_test_data(self):
        return self.generate_random_data()

    def geodesic_ivp_random_test_data(self):
        return self.generate_random_data_with_time()

    def curvature_random_test_data(self):
        return self.generate_random_data()

    def sectional_curvature_random_test_data(self):
        return self.generate_random_data()


@pytest.fixture(scope="class", params=NETWORKS, ids=str)
def bundle(request, modest_generator):
    cls = request.cls
    cls.total_space = quotient(*request.param)
    cls.base = cls.total_space.base()
    cls.data_generator = modest_generator(cls.total_space)
    cls.base_data_generator = modest_generator(cls.base)


@pytest.mark.usefixtures("bundle")
class TestBalancedBundle(FiberBundleTestCase, metaclass=DataBasedParametrizer):
    testing_data = BundleData()


@pytest.fixture(scope="class", params=NETWORKS, ids=str)
def action(request):
    cls = request.cls
    cls.space = BalancedNetworks(*request.param)
    cls.group_action = HiddenRotationAction(cls.space.widths)
    cls.group = cls.group_action.group
    cls.data_generator = RandomDataGenerator(cls.space)
    cls.group_data_generator = RandomDataGenerator(cls.group)


@pytest.mark.usefixtures("action")
class TestHiddenRotationAction(GroupActionTestCase, metaclass=DataBasedParametrizer):
    testing_data = ActionData()


@pytest.fixture(
    scope="class",
    params=[((2, 2, 2, 2), None, True), ((3, 4, 2), 1, False), ((3, 2), 1, False)],
    ids=str,
)
def below(request, modest_generator):
    cls = request.cls
    cls.space = quotient(*request.param).quotient
    cls.data_generator = modest_generator(cls.space)
    cls.other_space = quotient(*request.param).base()


@pytest.mark.usefixtures("below")
class TestBalancedQuotientMetric(QuotientMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = QuotientData()


@pytest.mark.usefixtures("below")
class TestQuotientAgainstDepthMetric(
    RiemannianMetricComparisonTestCase, metaclass=DataBasedParametrizer
):
    testing_data = ComparisonData()


@pytest.fixture(scope="class", params=[((2, 2, 2), None, True), ((3, 2, 4, 2), 1, False)], ids=str)
def above(request, modest_generator):
    cls = request.cls
    cls.space = quotient(*request.param)
    cls.data_generator = modest_generator(cls.space, 0.1)


@pytest.mark.usefixtures("above")
class TestBalancedMetric(RiemannianMetricTestCase, metaclass=DataBasedParametrizer):
    testing_data = TotalData()
