"""Properties over shapes, ranks, depths, types and spectra that hypothesis chooses, and fuzzing.

The profiles stand in conftest.py; ``--hypothesis-profile=night`` tries a hundred times as many.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.cli import main
from dln_geometry.dynamics.store import Column
from dln_geometry.support import Growing

DTYPES = some.sampled_from([torch.float64, torch.float32])
DEPTHS = some.one_of(some.integers(1, 6).map(float), some.floats(1.0, 50.0), some.just(math.inf))


@some.composite
def points(draw, depths=DEPTHS, spread=3.0):
    """Draw a point of any shape, rank, depth and batch, with singular values over some decades."""
    m, n = draw(some.integers(1, 5)), draw(some.integers(1, 5))
    r, dtype = draw(some.integers(1, min(m, n))), draw(DTYPES)
    batch = draw(some.sampled_from([(), (2,), (2, 1)]))
    g = torch.Generator().manual_seed(draw(some.integers(0, 2**31)))
    u, v = (
        torch.linalg.qr(torch.randn(*batch, d, r, generator=g, dtype=torch.float64))[0]
        for d in (m, n)
    )
    decades = spread if dtype == torch.float64 else spread / 2
    s = 10 ** (decades * (torch.rand(*batch, r, generator=g, dtype=torch.float64) - 0.5))
    if r > 1 and draw(some.booleans()):
        s[..., 1] = s[..., 0]
    s = s.sort(descending=True).values
    parts = (x.to(dtype) for x in (u, s, v.mT))
    return dln.EndToEnd(*parts, draw(depths), check=False)


def close(a, b, ops=1000.0, scale=None):
    eps = torch.finfo(a.dtype).eps
    size = float(b.abs().max()) if scale is None else scale
    return float((a - b).abs().max()) <= ops * eps * max(size, torch.finfo(a.dtype).tiny)


@given(points())
def test_a_point_is_its_matrix(p):
    again = dln.EndToEnd.of(p.matrix, p.depth, rank=p.rank)
    assert close(again.matrix, p.matrix)
    assert close(again.s, p.s)
    assert close(dln.Collapsed.of(p).matrix, p.matrix)


@given(points(), some.integers(0, 2**31))
def test_metric_and_cometric_are_inverse(p, seed):
    z = torch.randn(*p.matrix.shape, generator=torch.Generator().manual_seed(seed)).to(p.matrix)
    moved = dln.cometric(p, dln.metric(p, dln.cometric(p, z)))
    once = dln.cometric(p, z)
    condition = float((p.s[..., 0] / p.s[..., -1]).max()) ** 2
    assert close(moved, once, ops=3000 * condition)


@given(points(some.integers(2, 5).map(float)))
def test_balanced_factors_are_balanced_and_make_the_matrix(p):
    factors = dln.balanced_factors(p)
    assert close(factors.matrix, p.matrix, ops=3000)
    assert bool(dln.is_balanced(factors, rtol=1e3 * torch.finfo(p.dtype).eps).all())


@given(points(), some.floats(0.01, 0.5), some.booleans())
def test_flows_lower_the_loss_and_keep_the_rank(p, t_end, store):
    loss = losses.Quadratic(torch.zeros(p.shape, dtype=p.dtype))
    path = dln.gradient_flow(loss, p, t_end=t_end / max(1.0, float(p.s.max())), rtol=1e-4)
    assert bool((path.loss[-1] <= path.loss[0] * (1 + 1e-3)).all())
    assert bool(torch.isfinite(path.final.matrix).all())


@given(points(), some.integers(0, 2**31))
def test_trajectories_are_read_back_to_the_bit(p, seed):
    import tempfile

    path = dln.brownian_motion(p, t_end=0.01, dt=0.005, generator=seed, keep_points=True)
    with tempfile.TemporaryDirectory() as folder:
        again = dln.Trajectory.load(path.save(Path(folder) / "run"))
    assert torch.equal(again.singular_values, path.singular_values)
    assert torch.equal(again.points[-1].s, path.points[-1].s)


@given(
    some.lists(some.integers(0, 3), max_size=3),
    some.sampled_from(["float64", "float32", "int64", "bool", "complex128"]),
    some.lists(some.integers(1, 40), min_size=1, max_size=4),
    some.integers(1, 200),
    some.integers(0, 2**31),
)
def test_columns_give_back_what_was_added(row, dtype, added, chunk, seed):
    import tempfile

    kind, g = getattr(torch, dtype), torch.Generator().manual_seed(seed)
    x = (4 * torch.randn(sum(added), *row, generator=g, dtype=torch.float64)).to(kind)
    names = tuple(f"x_{k}" for k in range(len(row)))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("dln_geometry.dynamics.store.columns.CHUNK", chunk)
        made = Path(folder), "x", kind, tuple(row), ("time", *names), "run"
        column, count = Column(*made), 0
        for more in added:
            count += more
            column.write(Growing(list(x[:count].unbind(0)), count))
        assert torch.equal(Column(*made).read(np.array([count])), x)
        zarr = pytest.importorskip("zarr")
        if 0 not in row:
            assert np.array_equal(zarr.open_array(Path(folder) / "x", mode="r")[:], x.numpy())


@given(
    some.lists(some.integers(0, 9), min_size=3, max_size=3),
    some.lists(some.integers(0, 9), min_size=3, max_size=3),
    some.integers(1, 300),
)
def test_columns_of_samples_at_different_rows_give_back_what_was_added(first, more, chunk):
    import tempfile

    x = torch.arange(18 * 3 * 2, dtype=torch.float64).reshape(18, 3, 2)
    counts = np.array(first), np.array(first) + np.array(more)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("dln_geometry.dynamics.store.columns.CHUNK", chunk)
        made = Path(folder), "x", x.dtype, (3, 2), ("time", "batch", "x_0"), "run", 18, True
        column = Column(*made)
        for count in counts:
            column.write(Growing(x, count))
        got = Column(*made).read(counts[1])
    known = torch.arange(18)[:, None] < torch.from_numpy(counts[1])
    assert torch.equal(got, torch.where(known[..., None], x, 0.0))


SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".txt", ".mtx", ".pt", ".safetensors", ".parquet")


@given(some.binary(max_size=300), some.sampled_from(SUFFIXES))
def test_files_of_any_bytes_are_refused_in_one_line(content, suffix):
    import contextlib
    import io
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(content)
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(["entropy", str(path)])
    assert code in (0, 1, 2)
    if code:
        assert said.getvalue().splitlines()[-1].startswith("error: ")


WORDS = some.sampled_from(
    ["entropy", "flow", "langevin", "dyson", "moments", "--depth", "--rank", "-1", "nan", "inf",
     "3", "1e400", "--json", "--out", "--seed", "x.csv", "", "--", "ä", "--t-end", "0", "--store"]
)  # fmt: skip


@given(some.lists(WORDS, max_size=5))
def test_any_command_line_ends_with_a_code_and_no_traceback(words):
    import contextlib
    import io
    import tempfile

    said = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        # Without a command the photograph is completed, which takes long.
        code = main(["entropy", *words])
    assert code in (0, 1, 2)
    assert "Traceback" not in said.getvalue()


@pytest.mark.slow
def test_many_steps_of_langevin_dynamics_keep_memory_flat_and_the_point_sound(generator):
    """HYPOTHESIS_PROFILE=night makes a million."""
    import resource

    night = os.environ.get("HYPOTHESIS_PROFILE") == "night"
    steps = 10**6 if night else 10**4
    start = dln.EndToEnd.of(torch.eye(3, 2, dtype=torch.float64), 3)
    loss, used = losses.Quadratic(torch.eye(3, 2, dtype=torch.float64)), []

    def told(fraction, info):
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    path = dln.langevin(
        loss, start, beta=20.0, t_end=0.002 * steps, dt=0.002, generator=generator, progress=told
    )
    end = path.final
    one = torch.eye(2, dtype=torch.float64)
    assert close(end.u.mT @ end.u, one, ops=300)
    assert close(end.vh @ end.vh.mT, one, ops=300)
    assert bool((end.s > 0).all())
    assert float(path.singular_values.max()) < 10.0
    # Kilobytes: rows alone are kept.
    assert used[-1] - used[len(used) // 10] < 20_000
