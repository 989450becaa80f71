from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dln_geometry.learning.architecture import Part, SymmetricGroup
from dln_geometry.learning.monitor import ChargeMonitor, ChargeRecord
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.testing import assert_close
from tests.learning.monitor.loops import F64, REAL, RULES, batch, made, train, watched, worst


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", REAL)
def test_the_laws_are_exact_over_500_minibatches(name, rule, generator):
    """Every charge of every group, with a schedule that changes the rate in each step."""
    net, x = made(name, generator)
    lr = 0.02 if name in ("convolution", "attention") else 0.05
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, **RULES[rule])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.6 + 0.4 * math.cos(n / 9))
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    with watched(net, optimizer, loss="cross_entropy", every=10) as monitor:
        train(net, x, optimizer, 500, generator, schedule)
    record = monitor.record()
    assert record.steps.tolist() == list(range(0, 501, 10))
    assert len(record.labels) == len(monitor.groups) >= 3
    assert max(worst(monitor).values()) < 1e-12
    # It was no standstill: parameters and charges have moved.
    assert all(not torch.equal(p, start[n]) for n, p in net.named_parameters())
    assert float((record.charge[-1] - record.charge[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["layer norm", "batch norm", "weight norm", "mlp", "deep linear"])
def test_groups_of_parameters_with_rates_and_decays_of_their_own(name, rule, generator):
    net, x = made(name, generator)
    biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
    late = [p for n, p in net.named_parameters() if not n.endswith("bias") and n[0] not in "012"]
    early = [p for n, p in net.named_parameters() if not n.endswith("bias") and n[0] in "012"]
    groups = [
        {"params": early},
        {"params": late, "lr": 0.03, "weight_decay": 0.05},
        {"params": biases, "lr": 0.07, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=0.05, **RULES[rule])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.8)
    with watched(net, optimizer, loss="cross_entropy", units=True) as monitor:
        train(net, x, optimizer, 100, generator, schedule)
    assert max(worst(monitor).values()) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_schedules_that_change_the_ratio_of_rates_and_the_momentum(rule, generator):
    net, x = made("mlp", generator)
    weights = [p for n, p in net.named_parameters() if n != "2.weight"]
    options = [{"params": weights}, {"params": [net[2].weight], "lr": 0.02}]
    optimizer = torch.optim.SGD(options, lr=0.05, **RULES[rule])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda n: 1 / (1 + 0.1 * n), lambda n: 1 + 0.05 * n]
    )

    def change(n):
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.01 * (n % 3)
            if RULES[rule].get("momentum"):
                # Not zero with Nesterov's, which needs some.
                low = 0.1 if rule == "nesterov" else 0.0
                group["momentum"] = [0.9, low, 0.5][n // 4 % 3]

    with watched(net, optimizer, loss="cross_entropy") as monitor:
        train(net, x, optimizer, 40, generator, schedule, change)
    assert max(worst(monitor).values()) < 1e-12


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


@pytest.mark.parametrize("rule", RULES)
def test_thinning_changes_no_prediction(rule, generator):
    net, x = made("layer norm", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, **RULES[rule])
    monitors = [watched(net, optimizer, every=every, units=True, flush_every=5) for every in (1, 7)]
    train(net, x, optimizer, 30, generator)
    dense, thin = (m.record() for m in monitors)
    assert thin.steps.tolist() == [0, 7, 14, 21, 28]
    assert_close(thin.unit_predicted, dense.unit_predicted[thin.steps], ops=10)


@pytest.mark.parametrize("rule", RULES)
def test_float32(rule, generator):
    net, x = made("convolution", generator, torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, **RULES[rule])
    # An epsilon that single precision knows.
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    with watched(net, optimizer, loss="cross_entropy", every=5) as monitor:
        train(net, x, optimizer, 100, generator)
    # Roundings of a hundred steps.
    assert max(worst(monitor).values()) < 100 * torch.finfo(torch.float32).eps
    assert not any(line.is_broken for line in monitor.report())


def test_an_epsilon_breaks_the_scale_by_as_much(generator):
    residuals = []
    for eps in (1e-3, 1e-4, 1e-5):
        net, x = made("layer norm", torch.Generator().manual_seed(3))
        net[1].eps = eps
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        with watched(net, optimizer) as monitor:
            train(net, x, optimizer, 30, torch.Generator().manual_seed(4))
        residuals.append(worst(monitor)["scale(0.weight, 0.bias)"])
        assert not any(line.is_broken for line in monitor.report())
        assert worst(monitor)["translation(0.weight, 0.bias)"] < 1e-13
    assert 8 < residuals[0] / residuals[1] < 12
    assert 8 < residuals[1] / residuals[2] < 12


BREAKS = {
    "another loss": "translation(6.weight, 6.bias)",
    "penalty": "scale(0.weight, 0.bias)",
    "moved": "scale(0.weight, 0.bias)",
    "clipped by value": "scale(0.weight, 0.bias)",
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("on_break", ["ignore", "warn", "raise"])
def test_a_broken_symmetry_is_seen(how, on_break, generator):
    net, x = made("layer norm", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    monitor = watched(net, optimizer, loss="cross_entropy", on_break=on_break, flush_every=1000)

    def step(n):
        optimizer.zero_grad()
        loss = batch(net, x, generator)
        if how == "another loss" and n == 12:
            loss = loss + 1e-3 * net(x).square().mean()
        if how == "penalty" and n == 12:
            loss = loss + 1e-3 * net[0].weight.square().sum()
        loss.backward()
        if how == "clipped by value" and n == 12:
            nn.utils.clip_grad_value_(net.parameters(), 1e-2)
        optimizer.step()
        if how == "moved" and n == 12:
            with torch.no_grad():
                net[0].weight[1, 1] += 1e-3

    for n in range(12):
        step(n)
    assert max(worst(monitor).values()) < 1e-12
    for n in range(12, 25):
        step(n)
    if on_break == "raise":
        with pytest.raises(SymmetryError, match="must be a symmetry within .* got a resid") as info:
            monitor.flush()
        assert info.value.residual > 1e-6
    elif on_break == "warn":
        with pytest.warns(UserWarning, match="must be a symmetry within .* after 1[34] steps"):
            monitor.flush()
        # Once is enough.
        train(net, x, optimizer, 2, generator)
        monitor.flush()
    else:
        lines = {line.label: line for line in monitor.report()}
        assert lines[BREAKS[how]].is_broken
        assert lines[BREAKS[how]].worst > 1e-6
        monitor.restart()
        train(net, x, optimizer, 10, generator)
        assert max(line.residual for line in monitor.report()) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_resume_goes_on_as_if_nothing_had_happened(rule, generator, tmp_path):
    def start():
        net, x = made("layer norm", torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, **RULES[rule])
        return net, x, optimizer, watched(net, optimizer, every=3, units=True)

    net, x, optimizer, monitor = start()
    data = torch.Generator().manual_seed(2)
    train(net, x, optimizer, 10, data)
    parts = {"net": net, "optimizer": optimizer, "monitor": monitor}
    saved = {name: part.state_dict() for name, part in parts.items()}
    torch.save(saved, tmp_path / "run.pt")
    state = data.get_state()
    train(net, x, optimizer, 10, data)
    net, x, optimizer, resumed = start()
    loaded = torch.load(tmp_path / "run.pt", weights_only=True)
    net.load_state_dict(loaded["net"])
    optimizer.load_state_dict(loaded["optimizer"])
    resumed.load_state_dict(loaded["monitor"])
    data.set_state(state)
    train(net, x, optimizer, 10, data)
    one, two = monitor.record(), resumed.record()
    assert torch.equal(one.steps, two.steps)
    assert_close(two.unit_predicted, one.unit_predicted, ops=10)
    assert max(worst(resumed).values()) < 1e-12
    with pytest.raises(ValueError, match="state must be of the groups"):
        watched(net, optimizer, loss="cross_entropy").load_state_dict(loaded["monitor"])


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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("foreach", [False, True])
def test_closures_and_gradients_that_are_missing(rule, foreach, generator):
    with torch.random.fork_rng():
        one = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).double()
        two = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, eps=0.0), nn.Linear(6, 4)).double()
    net = nn.ModuleDict({"one": one, "two": two})
    x = torch.randn(9, 5, generator=generator, dtype=F64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, foreach=foreach, **RULES[rule])
    from dln_geometry.learning.architecture import symmetries_of

    def named(prefix, group):
        first, second = (
            tuple(Part(f"{prefix}.{p.name}", p.axis, p.units, p.block, p.start) for p in side)
            for side in (group.first, group.second)
        )
        return SymmetricGroup(group.kind, first, second)

    groups = [
        named(prefix, g)
        for prefix, part in net.items()
        for g in symmetries_of(part, loss="cross_entropy")
    ]
    monitor = watched(net, optimizer, groups)
    for n in range(30):
        # Each is left out now and then; their buffers begin at different times.
        part = net["one"] if n % 3 == 1 else net["two"]

        def closure(part=part):
            optimizer.zero_grad(set_to_none=True)
            loss = batch(part, x, generator)
            loss.backward()
            return loss

        if n % 2:
            assert float(optimizer.step(closure).detach()) > 0
        else:
            closure()
            optimizer.step()
    assert max(worst(monitor).values()) < 1e-12


def test_a_group_that_moves_in_part_only_is_refused(generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    watched(net, optimizer)
    batch(net, x, generator).backward()
    net[0].bias.grad = None
    with pytest.raises(RuntimeError, match="must have gradients or none of them, got none for"):
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_begins_in_mid_run_and_maximises(rule, generator):
    net, x = made("layer norm", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, maximize=True, **RULES[rule])

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (-batch(net, x, generator)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()

    run(7)
    with watched(net, optimizer, loss="cross_entropy") as monitor:
        run(30)
    assert max(worst(monitor).values()) < 1e-12


def test_skipped_steps_are_no_steps(generator):
    net, x = made("mlp", generator, torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    monitor = watched(net, optimizer, loss="cross_entropy")
    for n in range(12):
        optimizer.zero_grad()
        loss = batch(net, x, generator)
        scaler.scale(loss * (math.inf if n == 5 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert monitor.record().steps.tolist() == list(range(12))
    assert max(worst(monitor).values()) < 1e-5


def test_fused_steps_are_exact_but_not_under_a_scaler(generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, fused=True)
    monitor = watched(net, optimizer, loss="cross_entropy")
    train(net, x, optimizer, 20, generator)
    assert max(worst(monitor).values()) < 1e-12
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(batch(net, x, generator)).backward()
    with pytest.raises(RuntimeError, match="use fused=False"):
        scaler.step(optimizer)


def test_frozen_parameters_are_left_out(generator):
    net, _ = made("mlp", generator)
    net[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    monitor = watched(net, optimizer, loss="cross_entropy")
    assert monitor.labels == ("translation(4.weight, 4.bias)",)
    # The parts of a translation move on their own.
    optimizer = torch.optim.SGD([net[4].bias], lr=0.1)
    assert watched(net, optimizer, loss="cross_entropy").labels == ("translation(4.bias)",)
    group = SymmetricGroup("scale", (Part("2.weight", 0, 1, 6),))
    with pytest.raises(ValueError, match=r"groups must hold .* got \['2.weight'\]"):
        watched(net, optimizer, [group])


def test_the_loop_is_left_as_it_is(generator):
    """The same parameters to the last bit, with a monitor and without."""
    finals = []
    for is_watched in (False, True):
        net, x = made("convolution", torch.Generator().manual_seed(5))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True)
        if is_watched:
            watched(net, optimizer, example_input=x, loss="cross_entropy")
        train(net, x, optimizer, 5, torch.Generator().manual_seed(6))
        finals.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*finals)


def adam(net):
    return ChargeMonitor(net, torch.optim.Adam(net.parameters()))


def mixed(net):
    first, second = list(net[:2].parameters()), list(net[2:].parameters())
    groups = [{"params": first}, {"params": second, "momentum": 0.5}]
    return ChargeMonitor(net, torch.optim.SGD(groups, lr=0.1, momentum=0.9))


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


class Overridden(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (adam, TypeError, "optimizer must be torch.optim.SGD.*got Adam"),
        (
            lambda net: ChargeMonitor(net, Overridden(net.parameters(), lr=0.1)),
            TypeError,
            "got Overridden",
        ),
        (lambda net: ChargeMonitor(net.forward, sgd(net)), TypeError, "module must be a torch.nn"),
        (mixed, ValueError, "momentum must be the same for all parameters of a symmetric group"),
        (lambda net: ChargeMonitor(net, sgd(net), every=0), ValueError, "every must be at least 1"),
        (lambda net: ChargeMonitor(net, sgd(net), every=1.5), TypeError, "every must be an integ"),
        (
            lambda net: ChargeMonitor(net, sgd(net), every=4, window=5),
            ValueError,
            "window must be None or at most every = 4, got 5",
        ),
        (lambda net: ChargeMonitor(net, sgd(net), window=0), ValueError, "window must be at least"),
        (
            lambda net: ChargeMonitor(net, sgd(net), tolerance="small"),
            TypeError,
            "tolerance must be a real number, got 'small'",
        ),
        (lambda net: ChargeMonitor(net, sgd(net), history=0), ValueError, "history must be at"),
        (
            lambda net: ChargeMonitor(net, sgd(net), on_break="cry"),
            ValueError,
            'on_break must be "',
        ),
        (lambda net: ChargeMonitor(net, sgd(net), tolerance=-1.0), ValueError, "tolerance must be"),
        (
            lambda net: ChargeMonitor(net, sgd(net), writer=3),
            TypeError,
            "must have a method add_sc",
        ),
        (lambda net: ChargeMonitor(net, sgd(net), []), ValueError, "must have symmetric groups"),
        (lambda net: ChargeMonitor(net, sgd(net)).report(), RuntimeError, "nothing is recorded"),
        (
            lambda net: ChargeMonitor(net, sgd(net), [SymmetricGroup("scale", (Part("w", 0, 1),))]),
            ValueError,
            "params must hold 'w'",
        ),
    ],
)
def test_bad_input(make, error, message, generator):
    net, _ = made("mlp", generator)
    with pytest.raises(error, match=message):
        make(net)


def test_sparse_gradients_are_refused(generator):
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.LayerNorm(3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ChargeMonitor(net, optimizer, [SymmetricGroup("translation", (Part("0.weight", 1, 1, 3),))])
    net(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="gradients must be dense"):
        optimizer.step()
