from __future__ import annotations

from dln_geometry.support import Progress, progress_bar

INFO = {"obs": [[3.0, 9.0], [5.0, 1.0]], "t": 0.5}


def test_nothing_is_shown_unless_asked(capsys):
    with Progress(False) as bar:
        assert bar.callback is None
    assert not capsys.readouterr().out


def test_the_users_function_is_told_the_largest_loss():
    seen = []
    with Progress(lambda fraction, info: seen.append((fraction, info["loss"], info["t"]))) as bar:
        bar.callback(0.25, INFO)
    assert seen == [(0.25, 5.0, 0.5)]
    assert "loss" not in INFO


def test_the_bar_shows_label_share_and_loss(capsys):
    with Progress(True, "moments") as bar:
        bar.callback(0.25, INFO)
    out = capsys.readouterr().out
    assert "moments" in out
    assert "25%  loss 5.000e+00" in out


def test_a_bar_of_several_runs(capsys):
    with progress_bar("photograph", total=4.0, stderr=True) as tell:
        tell(1.0, "depth 2")
    out, err = capsys.readouterr()
    assert not out
    assert "25%  depth 2" in err
