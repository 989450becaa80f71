"""What the completer promises of any table: by independent routes, and with its defaults alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.completion import MatrixCompleter, dense_part
from dln_geometry.completion import Problem as Entries


def soft_imputed(values, known, penalty, steps=20_000):
    """Return the fixed point of soft-impute: shrink singular values of the filled table."""
    x = np.zeros(values.shape)
    for _ in range(steps):
        u, s, vh = np.linalg.svd(np.where(known, values, x), full_matrices=False)
        new = (u * np.maximum(s - penalty, 0)) @ vh
        if np.abs(new - x).max() < 1e-13:
            break
        x = new
    return x


def test_depth_two_ends_at_the_fixed_point_of_soft_impute(rng, generator):
    x = rng.normal(size=(12, 2)) @ rng.normal(size=(2, 9)) + 0.1 * rng.normal(size=(12, 9))
    known = rng.random(x.shape) < 0.6
    penalty = 0.6
    loss = dln.losses.Completion.from_matrix(np.where(known, x, np.nan))
    start = dln.Collapsed.random(x.shape, 9, 2, scale=0.3, generator=generator, dtype=torch.float64)
    rules = {"gradient": 1e-8, "evaluations": 20_000}
    found = dln.gradient_flow(loss, start, until=rules, decay=penalty).final.matrix.numpy()
    expected = soft_imputed(x, known, penalty)
    assert 0 < np.linalg.matrix_rank(expected, tol=1e-6) < 9
    assert np.abs(found - expected).max() < 1e-6


def low_rank(rng, m=24, n=16, noise=0.2):
    x = rng.normal(size=(m, 2)) @ rng.normal(size=(2, n)) + noise * rng.normal(size=(m, n))
    return x + rng.normal(size=(m, 1)) + rng.normal(size=n)


TABLES = {
    "6 x 5": lambda rng: low_rank(rng, 6, 5),
    "one column": lambda rng: low_rank(rng, 30, 1),
    "one row": lambda rng: low_rank(rng, 1, 30),
    "negative": lambda rng: -9.0 - np.abs(low_rank(rng)),
    "equal rows": lambda rng: np.tile(rng.normal(size=16), (24, 1)),
    "noise": lambda rng: rng.normal(size=(24, 16)),
    "side means and noise": lambda rng: low_rank(rng, noise=3.0),
    "full rank": lambda rng: np.linalg.qr(rng.normal(size=(20, 20)))[0],
    "zeros and ones": lambda rng: (low_rank(rng) > 0).astype(float),
    "heavy tails": lambda rng: np.exp(low_rank(rng)),
    "huge": lambda rng: 1e12 * low_rank(rng),
    "tiny": lambda rng: 1e-12 * low_rank(rng),
    "far from zero": lambda rng: 1e9 + low_rank(rng),
    "wide": lambda rng: low_rank(rng, 4, 400),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_defaults_are_no_worse_than_side_means_unless_they_say_so(name, rng):
    x = TABLES[name](rng)
    holes = np.where(rng.random(x.shape) < 0.6, x, np.nan)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        completer = MatrixCompleter().fit(holes)
        assert np.isfinite(completer.complete()).all()
        hidden = np.nonzero(np.isnan(holes))
        error, means = completer.errors(hidden, x[hidden])
    told = any("hardly better" in str(warning.message) for warning in said)
    # Errors of so few hidden entries scatter: by 1 / sqrt(2 k), and so do those that choose.
    noise = 2.0 / np.sqrt(2 * len(hidden[0])) + 2.0 / np.sqrt(2 * (x.size - len(hidden[0])))
    assert told or error < (1 + noise) * means


def test_whole_numbers_are_values_and_full_tables_are_kept(rng):
    x = np.round(3 * low_rank(rng, 5, 4)).astype(np.int64)
    completer = MatrixCompleter(2, 2, 0.5, validation=0.0).fit(x)
    assert np.array_equal(completer.transform(x), x)


def test_a_part_of_a_table_keeps_what_a_row_has(rng):
    """Also where few rows and columns hold most entries, and with weights and features."""
    m, n, k = 4000, 3000, 60_000
    weights = [np.arange(1, size + 1.0) ** -0.6 for size in (m, n)]
    i, j = (rng.choice(len(w), 2 * k, p=w / w.sum()) for w in weights)
    key = np.unique(i * n + j)
    key = np.sort(rng.permutation(key)[:k])
    rows, cols = torch.from_numpy(key // n), torch.from_numpy(key % n)
    f = torch.from_numpy(rng.normal(size=(m, 2)))
    values = f[rows, 0] + 2.0 * cols  # names the columns
    problem = Entries(rows, cols, values, (m, n), values.abs() + 1.0, features=(f, None))
    part = dense_part(problem, 5000, seed=1)
    assert len(part) == 5000
    before, after = (len(p) / p.shape[0] for p in (problem, part))
    assert 0.7 * before < after < 2.0 * before
    assert part.features[0].shape == (part.shape[0], 2)
    known = part.values - part.features[0][part.rows, 0]
    assert torch.equal((known / 2).round().unique(), (known / 2).round()[_first(part.cols)])
    assert torch.equal(part.weights, part.values.abs() + 1.0)


def _first(places):
    """Return where each place stands first, in order of the places."""
    order = torch.argsort(places, stable=True)
    starts = torch.searchsorted(places[order].contiguous(), torch.arange(int(places.max()) + 1))
    return order[starts]


def test_large_tables_are_compared_on_a_part(rng, monkeypatch, capsys):
    search = "dln_geometry.completion.fitting.search"
    monkeypatch.setattr(f"{search}.LARGE", 2000)
    monkeypatch.setattr(f"{search}.PART", 1500)
    x = low_rank(rng, 120, 60)
    holes = np.where(rng.random(x.shape) < 0.5, x, np.nan)
    completer = MatrixCompleter((2, 2.5), decay=0.2, rtol=1e-2, verbose=True).fit(holes)
    assert capsys.readouterr().out.count("on a part of 1500 entries") == 1
    hidden = np.nonzero(np.isnan(holes))
    error, means = completer.errors(hidden, x[hidden])
    assert error < 0.4 * means
    assert completer.train_error_ < 0.4 * means  # with the entries that were held out, too
    assert completer.validation_error_ < 0.4 * completer.side_means_error_


def test_decays_of_large_tables_are_lowered_while_it_helps(rng, monkeypatch):
    """Rows with few entries are not in the part where the decay was chosen."""
    search = "dln_geometry.completion.fitting.search"
    monkeypatch.setattr(f"{search}.LARGE", 2000)
    monkeypatch.setattr(f"{search}.PART", 1500)
    errors = []
    for _ in range(3):
        x = rng.normal(size=(120, 3)) @ rng.normal(size=(3, 60)) + 2.0 * rng.normal(size=(120, 60))
        known = rng.random(x.shape) < np.linspace(0.1, 0.9, 120)[:, None]
        for stays in (True, False):
            with monkeypatch.context() as patched:
                if stays:
                    patched.setattr(f"{search}.adjusted", lambda chosen, fits, *_: (chosen, fits))
                completer = MatrixCompleter(2, 8, rtol=1e-2, shrink=5.0, random_state=0)
                completer.fit(np.where(known, x, np.nan))
            errors.append((completer.validation_error_, completer.decay_))
    plain, lowered = np.array(errors[::2]), np.array(errors[1::2])
    tried = completer.cv_results_["params"]
    assert any(one["decay"] == completer.decay_ for one in tried)
    assert (lowered <= plain).all()
    assert (lowered < plain).any(0).all()


def test_a_decay_that_a_part_chose_is_as_large_on_the_whole(rng, monkeypatch, capsys):
    """At depth 2 it is a ridge, which does not grow with the table as norms of its noise do."""
    search = "dln_geometry.completion.fitting.search"
    monkeypatch.setattr(f"{search}.LARGE", 2000)
    monkeypatch.setattr(f"{search}.PART", 1000)
    monkeypatch.setattr(f"{search}.adjusted", lambda chosen, fits, *_: (chosen, fits))
    x = rng.normal(size=(160, 3)) @ rng.normal(size=(3, 80)) + 2.0 * rng.normal(size=(160, 80))
    holes = np.where(rng.random(x.shape) < 0.5, x, np.nan)
    completer = MatrixCompleter(2, 8, rtol=1e-2, shrink=5.0, random_state=0, verbose=True)
    completer.fit(holes)
    words = capsys.readouterr().out.split("\n", 1)[0].split()
    entries, m, n = (int(words[k].strip(",")) for k in (-5, -3, -1))
    noise = [
        np.sqrt(count / (m * n)) * (np.sqrt(m) + np.sqrt(n))
        for count, m, n in ((0.9 * entries, m, n), (0.9 * np.isfinite(holes).sum(), *x.shape))
    ]
    tried = completer.cv_results_
    *scores, _ = tried["mean_test_score"]
    *decays, on_the_whole = (one["decay"] for one in tried["params"])
    expected = decays[int(np.argmax(scores))] * noise[0] / noise[1]
    assert on_the_whole == pytest.approx(expected, rel=0.15)
    assert completer.decay_ == on_the_whole


@pytest.mark.parametrize("refit", [True, False])
def test_side_means_predict_where_the_model_is_worse(refit, rng):
    """The held-out entries have the pattern of the others with the wrong sign."""
    x = 3.0 * rng.normal(size=(30, 1)) @ rng.normal(size=(1, 20)) + rng.normal(size=20)
    holes = np.where(rng.random(x.shape) < 0.6, x, np.nan)
    hidden = np.nonzero(np.isnan(holes))
    completer = MatrixCompleter(2, 8, 0.5, shrink=5.0, refit=refit, rtol=1e-2)
    with pytest.warns(UserWarning, match="which predict now: the table may not be close to"):
        completer.fit(holes, validation_entries=(*hidden, -x[hidden]))
    assert completer.models_[0].point is None
    assert completer.validation_error_ == completer.side_means_error_
    gap = completer.predict(*hidden) + x[hidden]
    if not refit:
        assert np.sqrt(np.mean(gap**2)) == pytest.approx(completer.validation_error_)
    assert np.isfinite(completer.transform(holes)).all()
    _, low, high = completer.predict([0], [0], interval=0.9)
    assert low < high
    assert np.isfinite(completer.partial_fit(x[:2]).complete()).all()
