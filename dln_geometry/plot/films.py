"""Animation of a run: its matrix and its singular values, time by time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Network
from dln_geometry.plot.appearance import figure
from dln_geometry.plot.axes import POINTS, float_array, values_over_time
from dln_geometry.plot.matrices import matrix
from dln_geometry.plot.runs import singular_values
from dln_geometry.support import as_count, as_positive, shown, written_whole


def animation(
    trajectory: Trajectory,
    path: str | os.PathLike[str],
    *,
    frames: int = 60,
    seconds: float = 5.0,
    width: float = 7.0,
) -> Path:
    """Write a film of a single flow as a GIF: the matrix at each time, and its singular values.

    Parameters
    ----------
    trajectory : Trajectory
        A run with ``dense=True`` (any frames), or with ``keep_points=True`` (its saved times).
    path : path
        The file, with the suffix ``.gif``.
    frames : int
        Number of pictures; of a run without dense output, at most as many as saved times.
    seconds : float
        Length of the film.
    width : float
        Width in inches, of 100 pixels.

    Examples
    --------
    >>> import tempfile
    >>> start = dln.Collapsed.random((3, 3), 3, 3, scale=0.1, generator=0)
    >>> run = dln.gradient_flow(dln.losses.Quadratic(torch.eye(3)), start, t_end=3.0, dense=True)
    >>> dln.plot.animation(run, tempfile.mkdtemp() + "/flow.gif", frames=4).name
    'flow.gif'
    """
    values = values_over_time(trajectory, "singular_values")
    if not isinstance(path, str | os.PathLike) or Path(path).suffix.lower() != ".gif":
        kind = ValueError if isinstance(path, str | os.PathLike) else TypeError
        raise kind(f"path must be a file with the suffix .gif, got {shown(path)}")
    count, length = as_count(frames, "frames", 2), as_positive(seconds, "seconds")
    if values.ndim != 2:
        raise ValueError(f"trajectory must be a single run, got a batch {values.shape[1:-1]}")
    if trajectory.dense is None and trajectory.points is None:
        raise ValueError("trajectory must keep its points (dense=True or keep_points=True)")
    t = float_array(trajectory.t)
    if trajectory.dense is not None:
        times = np.linspace(t[0], t[-1], count)
    else:
        times = t[np.unique(np.linspace(0, len(t) - 1, min(count, len(t))).astype(int))]
    found = [_matrix_at(trajectory, float(time)) for time in times]
    bound = max(float(np.abs(x).max()) for x in found) or 1.0
    fig, (left, right) = figure(1, 2, width=as_positive(width, "width"), aspect=0.9)
    fig.set_dpi(100)
    singular_values(trajectory, right)
    mark = right.axvline(times[0], color="black", linewidth=0.8)
    left.set_title(f"$t = {times[-1]:.3g}$")
    matrix(found[0], left, cmap="RdBu_r", vmin=-bound, vmax=bound)
    fig.colorbar(left.images[0], ax=left, shrink=0.8, label="entries of $X$")
    fig.canvas.draw()
    pictures = []
    for time, x in zip(times, found, strict=True):
        left.images[0].set_data(x)
        left.set_title(f"$t = {time:.3g}$")
        mark.set_xdata([time, time])
        pictures.append(_picture(fig))
    with written_whole(Path(path)) as handle:
        pictures[0].save(
            handle,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=max(20, round(1000 * length / len(pictures))),
            loop=0,
        )
    return Path(path)


def _picture(fig: object) -> object:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(fig)  # pyright: ignore[reportArgumentType]
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _matrix_at(trajectory: Trajectory, time: float) -> np.ndarray:
    point = trajectory.at(time).final
    if isinstance(point, tuple):
        point = Network(point)
    if isinstance(point, POINTS):
        return float_array(point.matrix)
    assert isinstance(point, Tensor)
    return float_array(point)
