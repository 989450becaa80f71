from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dln_geometry.learning.monitor import ChargeRecord
from dln_geometry.testing import assert_close
from tests.learning.monitor.loops import made, train, watched


def by_hand(net, group, unit):
    """Return a single charge of an MLP straight from its weights."""
    w, b, v = net[0].weight, net[0].bias, net[2].weight
    if group.kind == "rescale":
        return w[unit].square().sum() + b[unit].square() - v[:, unit].square().sum()
    return net[4].weight[:, unit].sum()


def test_charges_are_what_they_are_called(generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.5)
    monitor = watched(net, optimizer, loss="cross_entropy", units=True)
    train(net, x, optimizer, 3, generator)
    record = monitor.record()
    rescale = record.labels.index("rescale(0.weight, 0.bias, 2.weight)")
    translation = record.labels.index("translation(4.weight, 4.bias)")
    owner = np.array(record.unit_group)
    for k, group in (
        (rescale, monitor.groups[rescale]),
        (translation, monitor.groups[translation]),
    ):
        units = record.unit_charge[-1, owner == k]
        assert_close(units[2], by_hand(net, group, 2))
        assert_close(units[4], by_hand(net, group, 4))
    assert_close(record.charge[-1, rescale], record.unit_charge[-1, owner == rescale].sum())
    assert_close(
        record.charge[-1, translation], record.unit_charge[-1, owner == translation].norm()
    )


def test_moments_of_deep_layers_are_the_librarys(generator):
    net, x = made("deep linear", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.5)
    monitor = watched(net, optimizer, units=True)
    train(net, x, optimizer, 3, generator)
    record = monitor.record()
    owner = np.array(record.unit_group)
    for p, moment in enumerate(net[2].moments()):
        k = record.labels.index(f"gauge(2.weights.{p}, 2.weights.{p + 1})")
        assert_close(record.unit_charge[-1, owner == k].reshape(moment.shape), -moment)
        assert_close(
            record.charge[-1, k],
            -moment.trace(),
            scale=float(moment.detach().diagonal().abs().sum()),
        )
    narrow = watched(net, optimizer, moments=4)
    assert "rescale(2.weights.0, 2.weights.1)" in narrow.labels
    assert "gauge(2.weights.1, 2.weights.2)" in narrow.labels


@pytest.mark.parametrize("units", [False, True])
def test_records_are_saved_and_exported(units, generator, tmp_path):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    monitor = watched(net, optimizer, units=units)
    train(net, x, optimizer, 4, generator)
    path = monitor.save(tmp_path / "new" / "charges")
    assert path.name == "charges.npz"
    record, loaded = monitor.record(), ChargeRecord.load(tmp_path / "new" / "charges")
    assert len(loaded) == 5
    assert loaded.labels == record.labels
    assert loaded.unit_group == record.unit_group
    for name in ("steps", "charge", "predicted", "residual", "unit_charge", "unit_predicted"):
        a, b = getattr(record, name), getattr(loaded, name)
        assert (a is None and b is None) or torch.equal(a, b)
    data = monitor.to_xarray()
    assert data["charge"].dims == ("time", "group")
    assert data["time"].values.tolist() == [0, 1, 2, 3, 4]
    assert list(data["group"].values) == list(monitor.labels)
    assert ("unit_charge" in data) == units
    if units:
        assert data["unit_charge"].dims == ("time", "unit")
        own = data["unit_charge"].groupby("unit_group").sum()
        assert_close(own.sel(unit_group=monitor.labels[0]).values, record.charge[:, 0])
    with pytest.raises(FileNotFoundError):
        ChargeRecord.load(tmp_path / "none")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="path must be a saved record"):
        ChargeRecord.load(tmp_path / "bad.npz")


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))


def test_history_and_writer(generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    writer = Writer()
    with watched(net, optimizer, history=4, writer=writer, prefix="run", flush_every=3) as m:
        train(net, x, optimizer, 10, generator)
        assert {step for _, _, step in writer.scalars} == set(range(9))
    record = m.record()
    assert record.steps.tolist() == [7, 8, 9, 10]
    label = m.labels[0]
    written = {step: value for tag, value, step in writer.scalars if tag == f"run/{label}"}
    assert sorted(written) == list(range(11))
    assert_close(written[9], record.charge[2, 0])
    assert (f"run_residual/{label}", float(record.residual[-1, 0]), 10) in writer.scalars
    # Closed: the loop goes on alone.
    train(net, x, optimizer, 2, generator)
    assert m.record().steps.tolist() == [7, 8, 9, 10]


def test_files_of_version_one_are_read(tmp_path):
    """Written by numpy alone: files from before are read."""
    rows = np.arange(6.0).reshape(3, 2)
    names = ("charge", "predicted", "residual")
    meta = json.dumps({"format": 1, "labels": ["a", "b"], "unit_group": []})
    series = {name: rows + k for k, name in enumerate(names)}
    np.savez_compressed(tmp_path / "old.npz", steps=np.arange(3), meta=np.array(meta), **series)
    record = ChargeRecord.load(tmp_path / "old")
    assert (record.labels, record.unit_group, record.unit_charge) == (("a", "b"), (), None)
    assert record.steps.tolist() == [0, 1, 2]
    for k, name in enumerate(names):
        assert torch.equal(getattr(record, name), torch.from_numpy(rows + k))
    with np.load(record.save(tmp_path / "new"), allow_pickle=False) as new:
        assert set(new.files) == {"steps", "meta", *names}
        written = json.loads(str(new["meta"]))
        assert written.items() >= {**json.loads(meta), "format": 2}.items()
        assert written.keys() - json.loads(meta).keys() == {"version", "sha256"}


def test_records_that_do_not_fit_are_refused(tmp_path):
    rows = torch.ones(3, 2)
    good = {"steps": torch.arange(3), "labels": ("a", "b"), "charge": rows, "predicted": rows,
            "residual": rows}  # fmt: skip
    units = {"unit_charge": torch.ones(3, 1), "unit_predicted": torch.ones(3, 1)}
    ChargeRecord.load(ChargeRecord(**good, **units, unit_group=(1,)).save(tmp_path / "good"))
    for change, message in (
        ({"charge": rows[:2]}, "charge must have shape"),
        ({"steps": torch.ones(())}, "TypeError"),
        ({"labels": ("a",)}, "must have shape"),
        ({"residual": torch.ones(3, 2, dtype=torch.int64)}, "residual must hold real numbers"),
        ({**units, "unit_group": (2,)}, "unit_group must name 2 groups"),
        ({**units, "unit_predicted": None, "unit_group": (1,)}, "given together"),
    ):
        path = ChargeRecord(**{**good, **change}).save(tmp_path / "run")
        with pytest.raises(ValueError, match=f"saved record, got {path}: .*{message}"):
            ChargeRecord.load(path)
