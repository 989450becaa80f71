"""The path of an accelerator: a pretended device, whose messages the fake backend of torch takes.

One process: there the fake messages are the true ones. What NCCL does is for machines with GPUs.
"""

from __future__ import annotations

import warnings

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import dln_geometry as dln
from dln_geometry import sharded
from dln_geometry.testing import assert_close
from tests.devices.pretended import NAME, PretendedTensor, pretended
from tests.dynamics.sharded import cases

fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
# One for every kind of engine. Conjugate tensors are not pretended.
NAMES = "depth 1 of full rank", "depth 3", "depth 2.5, rebalanced", "depth 150", "infinite depth"


@pytest.fixture
def far_mesh():
    with pretended(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("fake", rank=0, world_size=1, store=fake.FakeStore())
        try:
            yield init_device_mesh(NAME, (1,), mesh_dim_names=("rows",))
        finally:
            dist.destroy_process_group()


@pytest.mark.slow
def test_flows_run_on_the_device_of_their_mesh(far_mesh, tmp_path):
    for name in NAMES:
        loss, point, options = cases.CASES[name]
        cut = sharded.distribute(loss, far_mesh), sharded.distribute(point, far_mesh)
        stored = {"store": tmp_path / name} if name == "depth 3" else {}
        path = cases.flow(*cut, options, **stored)
        expected = cases.flow(loss, point, options)
        assert isinstance(path.loss, PretendedTensor), name
        # Errors are differences: a rounding moves free steps by eps/rtol.
        for a, b in (
            (path.loss, expected.loss),
            (path.singular_values, expected.singular_values),
            (sharded.gather(path).final.matrix, expected.final.matrix),
        ):
            assert_close(a.cpu(), b, ops=1000, condition=1e4)
        assert path.status == expected.status


def test_starts_monitors_and_rows_are_made_on_the_device(far_mesh):
    point = sharded.random((9, 7), 2, 2.5, far_mesh, spectrum=[1.0, 0.5], generator=3)
    own = sharded.from_rows(point.L.to_local(), point.R.to_local(), 2.5, far_mesh)
    loss = sharded.RowBlocks(cases.quadratic(9, 7), (9, 7), far_mesh)
    path = dln.gradient_flow(
        loss, own, t_end=0.1, rtol=1e-4, monitor=sharded.distribute(cases.VALIDATION, far_mesh)
    )
    assert isinstance(path.final.L.to_local(), PretendedTensor)
    assert float(path.loss[-1]) < float(path.loss[0])
