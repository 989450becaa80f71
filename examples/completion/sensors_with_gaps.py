"""
Sensors with gaps
=================

A table of sensors with gaps, completed from the other sensors.

Temperatures of 40 sensors in one building, every half hour for three weeks, are made: a daily
pattern, the weather, a pattern of working days, and slow drifts; every sensor mixes them in its own
way. Readings are missing one by one, and in blocks: a sensor is off for hours or days. Column means
know the sensor alone, interpolation in time its neighbours in time alone; the completion knows that
few patterns move all sensors, and tells how far its predictions may be off.

Source: Cohen, Menon, Veraszto, Deep linear networks for matrix completion, arXiv 2210.12497.
"""

from __future__ import annotations

import numpy as np

from dln_geometry import gallery
from dln_geometry.completion import MatrixCompleter

SENSORS, PER_DAY, NOISE = 40, 48, 0.2


def readings(days, rng):
    """Return the readings (times, sensors) without noise."""
    hours = np.arange(days * PER_DAY) * 24 / PER_DAY
    weather = np.cumsum(rng.normal(size=len(hours))) * 0.15
    working = (hours // 24 % 7 < 5) * np.clip(np.sin(np.pi * (hours % 24 - 7) / 11), 0, None)
    patterns = [
        np.sin(2 * np.pi * (hours - 9) / 24),
        weather - weather.mean(),
        working * ((hours % 24 > 7) & (hours % 24 < 18)),
        np.sin(2 * np.pi * hours / (24 * 17) + 1),
    ]
    mixing = np.abs(rng.normal([[1.5], [0.6], [1.5], [0.8]], 0.5, (4, SENSORS)))
    return 20 + 2 * rng.normal(size=SENSORS) + np.array(patterns).T @ mixing


def gaps(shape, rng):
    """Return a mask of what is missing: a tenth one by one, and blocks up to two days."""
    missing = rng.random(shape) < 0.1
    for sensor in range(shape[1]):
        for _ in range(max(1, shape[0] // 200)):
            start = rng.integers(shape[0])
            missing[start : start + rng.integers(PER_DAY // 4, 2 * PER_DAY), sensor] = True
    return missing


def interpolated(table):
    """Fill the gaps of every sensor by straight lines in time."""
    filled, times = table.copy(), np.arange(len(table))
    for column in filled.T:
        known = ~np.isnan(column)
        column[~known] = np.interp(times[~known], times[known], column[known])
    return filled


# %%
run = gallery.begin(__doc__)
rng = np.random.default_rng(19)
truth = readings(7 if run.quick else 21, rng)
missing = gaps(truth.shape, rng)
noisy = truth + NOISE * rng.normal(size=truth.shape)
table = np.where(missing, np.nan, noisy)
completer = MatrixCompleter(2.5, 10, 0.03) if run.quick else MatrixCompleter()
filled = {
    "column means": np.where(missing, np.nanmean(table, axis=0), table),
    "lines in time": interpolated(table),
    "completion": completer.fit_transform(table),
}
print(f"{missing.mean():.0%} of {table.size} readings are missing; noise {NOISE}")
error = {}
for name, x in filled.items():
    error[name] = np.sqrt(np.mean((x - truth)[missing] ** 2))
    print(f"{name:<14} rms error {error[name]:.3f}")
print(completer.report_)
assert error["completion"] < 0.2 * error["lines in time"]
assert error["completion"] < NOISE

# %%
# The sensor with the most gaps, with intervals.
worst = int(missing.sum(0).argmax())
rows = np.arange(len(table))
found, low, high = completer.predict(rows, np.full(len(rows), worst), interval=0.9)
inside = ((low <= noisy[:, worst]) & (noisy[:, worst] <= high))[missing[:, worst]].mean()
print(f"sensor {worst}: {inside:.0%} of the lost readings lie within intervals of 90 %")
figure, axes = run.figure(aspect=0.4)
days = rows / PER_DAY
axes.fill_between(days, low, high, color="C0", alpha=0.25, lw=0, label="90 % intervals")
axes.plot(days, found, "C0", ls="-", lw=1, label="completion")
axes.plot(days, filled["lines in time"][:, worst], "C1:", label="lines in time")
axes.plot(days, table[:, worst], "k.", ms=2, label="readings")
axes.set(xlabel="day", ylabel="temperature / °C", title=f"sensor {worst}, with the most gaps")
axes.set(xlim=(days[0], days[-1]), xticks=range(0, int(days[-1]) + 1, 3))
figure.legend(loc="outside lower center", ncols=4)
run.save(figure)
