from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from safetensors import safe_open

import dln_geometry as dln
from dln_geometry.cli import main
from dln_geometry.cli.exchange import (
    ARRAYS,
    FIGURES,
    MATRICES,
    RUNS,
    is_ours,
    read_input,
    write_arrays,
    write_matrix,
    write_run,
)
from tests.cli.routes import refusal


@pytest.mark.parametrize("suffix", MATRICES)
def test_a_matrix_comes_back_from_every_format(suffix, rng):
    x = rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-12, 12, size=(4, 3))
    path = Path(f"X{suffix}")
    write_matrix(path, x)
    form = {"header": False, "index": False} if suffix in (".csv", ".tsv") else {}
    assert np.array_equal(read_input(path, **form).values, x)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_layers_in_every_format_are_read_by_name(suffix, rng, capsys):
    np.save("x.npy", rng.normal(size=(3, 2)))
    out = f"W{suffix}"
    assert main(["balance", "x.npy", "--depth", "3", "--out", out]) == 0
    assert "--key must name one of the matrices" in refusal(["entropy", out, "--key", "V"], capsys)
    assert main(["entropy", out, "--key", "W_2", "--out", "s.csv"]) == 0
    assert len(Path("s.csv").read_text().split()) == 2


def test_a_file_of_half_precision_is_read(capsys):
    torch.save(torch.eye(3, dtype=torch.bfloat16) * 2, "x.pt")
    assert read_input(Path("x.pt")).values.tolist() == (2 * np.eye(3)).tolist()
    torch.save({"a": torch.eye(2), "b": torch.eye(3)}, "two.pt")
    assert "a, b, got none" in refusal(["entropy", "two.pt"], capsys)
    torch.save(torch.full((2, 2), torch.nan), "nan.pt")
    assert "finite numbers" in refusal(["entropy", "nan.pt"], capsys)


def test_a_matrix_of_weights_is_completed_and_warnings_are_lines(rng, capsys):
    x = torch.outer(torch.arange(1.0, 7), torch.arange(1.0, 6))
    x[torch.arange(5), torch.arange(5)] = torch.nan
    torch.save({"ratings": x, "other": torch.eye(2)}, "r.pt")
    arguments = ["complete", "r.pt", "--key", "ratings", "--depth", "2", "--rank", "1", "--json"]
    assert main([*arguments, "--no-center", "--holdout", "0", "--t-end", "2000"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["shape"], found["entries"], found["rank"]) == ([6, 5], 25, 1)
    assert found["observed_error"] < 1
    assert np.load("r-completed.npy").shape == (6, 5)


@pytest.mark.filterwarnings("always")
def test_a_warning_is_one_line(rng, capsys):
    np.save("Y.npy", 5 * rng.normal(size=(4, 3)))
    assert main(["langevin", "Y.npy", "--depth", "3", "--dt", "1", "--json"]) in (0, 2)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("warning: dt = 1")


def some_run(name):
    t, values = np.array([0.0, 1.0]), np.arange(4.0).reshape(2, 2)
    if name == "charges":
        coords = {"time": t, "group": ["scale(0.weight)", "rescale"]}
        return xarray.Dataset({"charge": (("time", "group"), values)}, coords=coords)
    s = torch.from_numpy(values).flip(-1)
    return dln.Trajectory(t=torch.from_numpy(t), loss=s[:, 0], singular_values=s)


@pytest.mark.parametrize("name", ["flow", "charges"])
@pytest.mark.parametrize("suffix", RUNS)
def test_a_run_in_every_format_is_known_again_and_holds_its_numbers(name, suffix):
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    path, run = Path(f"run{suffix}"), some_run(name)
    for _ in range(2):
        write_run(path, run)
        assert is_ours([path])
    assert [file.name for file in Path().iterdir()] == [path.name], "nothing is left beside it"
    data = run if name == "charges" else run.to_xarray()
    key = "charge" if name == "charges" else "singular_values"
    if suffix in (".nc", ".zarr"):
        opened = xarray.open_dataset if suffix == ".nc" else xarray.open_zarr
        with opened(path, **({"consolidated": False} if suffix == ".zarr" else {})) as found:
            xarray.testing.assert_equal(found.load()[key].astype(float), data[key].astype(float))
    elif suffix == ".pt":
        held = torch.load(path, weights_only=True)
        assert np.array_equal(held[key].numpy(), data[key].values)
        assert name == "flow" or held["group"] == data["group"].values.tolist()
    elif suffix == ".safetensors":
        with safe_open(path, "np") as file:
            assert np.array_equal(file.get_tensor(key), data[key].values)
            told = file.metadata()
        assert name == "flow" or json.loads(told["group"]) == data["group"].values.tolist()


@pytest.mark.parametrize("suffix", sorted({*ARRAYS, *MATRICES}))
def test_results_are_known_where_the_format_has_room_for_a_mark(suffix):
    path, x = Path(f"x{suffix}"), np.eye(2)
    write_matrix(path, x)
    assert is_ours([path]) == (suffix not in (".npy", ".csv", ".tsv"))
    if suffix in ARRAYS:
        write_arrays(path, {"G_1": x, "G_2": x})
        assert is_ours([path])


def test_files_of_others_are_not_taken_for_results(rng, capsys):
    pytest.importorskip("zarr")
    np.save("Y.npy", rng.normal(size=(3, 2)))
    np.savez("a.npz", t=np.ones(2))
    torch.save({"t": torch.ones(2)}, "a.pt")
    Path("a.csv").write_text("time,temperature\n0,1\n")
    Path("a.tsv").write_text("time\tloss of water\n0\t1\n")
    xarray.Dataset({"loss": ("time", [1.0])}).to_netcdf("a.nc", engine="scipy")
    xarray.Dataset({"loss": ("time", [1.0])}).to_zarr("a.zarr", consolidated=False)
    for suffix in (".npz", ".pt", ".csv", ".tsv", ".nc", ".zarr"):
        said = refusal(["flow", "Y.npy", "--t-end", "0.1", "--out", f"a{suffix}"], capsys)
        assert "--force overwrites it" in said
    assert main(["flow", "Y.npy", "--t-end", "0.1", "--out", "a.zarr", "--force"]) == 0
    with xarray.open_zarr("a.zarr", consolidated=False) as found:
        assert found.sizes["mode"] == 2
    Path("b.zarr").mkdir()
    said = refusal(["flow", "Y.npy", "--t-end", "0.1", "--out", "b.zarr", "--force"], capsys)
    assert "must be a file, got the folder" in said
    for suffix in FIGURES:
        Path(f"a{suffix}").write_bytes(b"drawn by hand")
        assert not is_ours([Path(f"a{suffix}")])
