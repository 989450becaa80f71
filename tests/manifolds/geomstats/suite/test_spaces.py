"""geomstats' own test cases of spaces and groups, unmodified, on ours."""

from __future__ import annotations

import geomstats.backend as gs
import pytest
from geomstats.test.data import TestData
from geomstats.test.parametrizers import DataBasedParametrizer
from geomstats.test.random import EmbeddedSpaceRandomDataGenerator, RandomDataGenerator
from geomstats.test_cases.geometry.base import (
    LevelSetTestCase,
    VectorSpaceOpenSetTestCase,
    VectorSpaceTestCase,
)
from geomstats.test_cases.geometry.manifold import ManifoldTestCase
from geomstats.test_cases.geometry.mixins import ProjectionTestCaseMixins

from manifolds.geomstats_dln import (
    BalancedNetworks,
    FixedRankEndToEnd,
    FixedSpacesEndToEnd,
    FullRankEndToEnd,
    HiddenRotations,
    LayeredNetworks,
)

NETWORKS = [
    ((2, 2, 2), None),
    ((3, 3, 3, 3), None),
    ((2, 4, 3), None),
    ((4, 2, 3), None),
    ((3, 4, 2, 5), None),
    ((3, 3, 3), 2),
    ((3, 4, 3, 5), 2),
    ((2, 3), None),
    ((3, 4), 2),
]


class ManifoldData(TestData):
    trials = 1
    # geomstats draws these sizes at random when it is imported.
    N_VEC_REPS = (2,)
    N_SHAPE_POINTS = (1, 3)
    N_RANDOM_POINTS = (1, 3)
    N_TIME_POINTS = (1, 3)

    def not_belongs_test_data(self):
        return self.generate_random_data()

    def random_point_belongs_test_data(self):
        return self.generate_random_data()

    def random_point_shape_test_data(self):
        return self.generate_shape_data()

    def belongs_vec_test_data(self):
        return self.generate_vec_data()

    def is_tangent_vec_test_data(self):
        return self.generate_vec_data()

    def to_tangent_vec_test_data(self):
        return self.generate_vec_data()

    def to_tangent_is_tangent_test_data(self):
        return self.generate_random_data()

    def regularize_vec_test_data(self):
        return self.generate_vec_data()

    def regularize_belongs_test_data(self):
        return self.generate_random_data()

    def random_tangent_vec_is_tangent_test_data(self):
        return self.generate_random_data()

    def random_tangent_vec_shape_test_data(self):
        return self.generate_shape_data()


class ProjectionData(ManifoldData):
    def projection_vec_test_data(self):
        return self.generate_vec_data()

    def projection_belongs_test_data(self):
        return self.generate_random_data()


class OpenSetData(ProjectionData):
    def to_tangent_is_tangent_in_embedding_space_test_data(self):
        return self.generate_random_data()


class LevelSetData(ProjectionData):
    def submersion_vec_test_data(self):
        return self.generate_vec_data()

    def tangent_submersion_vec_test_data(self):
        return self.generate_vec_data()


class VectorSpaceData(ProjectionData):
    def random_point_is_tangent_test_data(self):
        return self.generate_random_data()

    def to_tangent_is_projection_test_data(self):
        return self.generate_random_data()

    def basis_cardinality_test_data(self):
        return self.generate_tests([{}])

    def basis_belongs_test_data(self):
        return self.generate_tests([{}])


@pytest.fixture(
    scope="class",
    params=[(2, 2, False), (3, 3, True), (3, 2, False), (1, 3, False), (1, 1, True)],
    ids=str,
)
def full_rank(request):
    m, n, positive_det = request.param
    request.cls.space = FullRankEndToEnd(m, n, positive_det)


@pytest.mark.usefixtures("full_rank")
class TestFullRankEndToEnd(VectorSpaceOpenSetTestCase, metaclass=DataBasedParametrizer):
    testing_data = OpenSetData()


@pytest.fixture(scope="class", params=[(3, 3, 2), (2, 4, 1), (4, 3, 2), (3, 2, 2)], ids=str)
def fixed_rank(request):
    request.cls.space = FixedRankEndToEnd(*request.param)
    request.cls.data_generator = EmbeddedSpaceRandomDataGenerator(request.cls.space)


@pytest.mark.usefixtures("fixed_rank")
class TestFixedRankEndToEnd(
    ProjectionTestCaseMixins, ManifoldTestCase, metaclass=DataBasedParametrizer
):
    testing_data = ProjectionData()


@pytest.fixture(
    scope="class",
    params=[(3, 3, 2, True), (2, 4, 1, False), (4, 3, 2, False), (3, 2, 2, True), (3, 3, 3, True)],
    ids=str,
)
def fixed_spaces(request):
    m, n, rank, positive_det = request.param
    left, right = (
        gs.reshape(gs.cos(gs.arange(1.0, size * rank + 1.0) ** 2), (size, rank)) for size in (m, n)
    )
    request.cls.space = FixedSpacesEndToEnd(left, right, positive_det)
    request.cls.data_generator = EmbeddedSpaceRandomDataGenerator(request.cls.space)


@pytest.mark.usefixtures("fixed_spaces")
class TestFixedSpacesEndToEnd(
    ProjectionTestCaseMixins, ManifoldTestCase, metaclass=DataBasedParametrizer
):
    testing_data = ProjectionData()


@pytest.fixture(scope="class", params=NETWORKS, ids=str)
def balanced(request):
    request.cls.space = BalancedNetworks(*request.param)


@pytest.mark.usefixtures("balanced")
class TestBalancedNetworks(LevelSetTestCase, metaclass=DataBasedParametrizer):
    testing_data = LevelSetData()


@pytest.fixture(scope="class", params=[(2, 2, 2), (3, 2, 4, 1), (2, 3)], ids=str)
def layered(request):
    request.cls.space = LayeredNetworks(request.param)


@pytest.mark.usefixtures("layered")
class TestLayeredNetworks(VectorSpaceTestCase, metaclass=DataBasedParametrizer):
    testing_data = VectorSpaceData()


@pytest.fixture(scope="class", params=[(2, 2, 2), (3, 3, 3, 3), (3, 2, 4, 1)], ids=str)
def rotations(request):
    request.cls.space = HiddenRotations(request.param)
    request.cls.data_generator = RandomDataGenerator(request.cls.space)


@pytest.mark.usefixtures("rotations")
class TestHiddenRotations(ManifoldTestCase, metaclass=DataBasedParametrizer):
    testing_data = ManifoldData()
