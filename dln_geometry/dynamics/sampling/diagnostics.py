"""How well chains have mixed: effective sample size and split R-hat, by arviz where installed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import as_count, shown

if TYPE_CHECKING:
    import xarray

__all__ = ["chains", "effective_sample_size", "split_rhat"]


def chains(trajectory: Trajectory, *, burn_in: int = 0, thin: int = 1) -> xarray.Dataset:
    """Return the series of a trajectory with the dimensions ``chain`` and ``draw`` of arviz.

    Parameters
    ----------
    trajectory : Trajectory
        A run of a batch of chains (any batch shape), or of a single one.
    burn_in : int
        Number of saved rows to leave out at the start; at least four rows must be left.
    thin : int
        Keep every `thin`-th row of the others.

    Examples
    --------
    >>> import torch
    >>> path = dln.Trajectory(t=torch.arange(10.0), loss=torch.zeros(10, 3))
    >>> dict(dln.diagnostics.chains(path, burn_in=2, thin=2).sizes)
    {'chain': 3, 'draw': 4}
    """
    import xarray

    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"trajectory must be a Trajectory, got {type(trajectory).__name__}")
    burn_in, thin = as_count(burn_in, "burn_in", 0), as_count(thin, "thin")
    rows = slice(burn_in, None, thin)
    kept = len(trajectory.t[rows])
    if kept < 4:
        raise ValueError(
            f"burn_in must leave at least 4 rows, got {kept} of {len(trajectory)} "
            f"with burn_in={burn_in} and thin={thin}"
        )
    data: dict[str, Any] = {}
    for name, last in (("loss", ()), ("singular_values", ("mode",)), ("states", ("particle",))):
        values = getattr(trajectory, name)
        if values is not None:
            array = values[rows].detach().cpu().numpy()
            tail = array.shape[array.ndim - len(last) :]
            array = array.reshape(kept, -1, *tail).swapaxes(0, 1)
            data[name] = (("chain", "draw", *last), array)
    times = trajectory.t[rows].detach().cpu().numpy()
    return xarray.Dataset(data, coords={"time": ("draw", times)})


def effective_sample_size(
    trajectory: Trajectory, *, burn_in: int = 0, thin: int = 1, method: str = "bulk"
) -> xarray.Dataset:
    """Return the effective sample size of every series, all chains together; needs arviz.

    Parameters
    ----------
    trajectory, burn_in, thin
        As in `chains`.
    method : str
        Of ``arviz.ess``: ``"bulk"``, ``"tail"``, ``"mean"``, ...

    References
    ----------
    A. Vehtari et al., Bayesian Analysis 16 (2021), arXiv 1903.08008.

    Examples
    --------
    >>> loss = dln.losses.Quadratic(torch.zeros(2, 2))
    >>> start = dln.Collapsed.random((2, 2), 2, 2, batch=(2,), generator=0)  # two chains
    >>> path = dln.sample_gibbs(loss, start, beta=5.0, draws=20, burn_in=20, generator=0)
    >>> sizes = dln.diagnostics.effective_sample_size(path)
    >>> sorted(sizes)
    ['loss', 'singular_values']
    """
    data = chains(trajectory, burn_in=burn_in, thin=thin).drop_vars("time")
    arviz = _arviz()
    try:
        return arviz.ess(data, method=method)
    except (TypeError, ValueError, KeyError) as error:
        got = f"{shown(method)}: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"method must be one of arviz.ess, got {got}") from None


def split_rhat(trajectory: Trajectory, *, burn_in: int = 0, thin: int = 1) -> xarray.Dataset:
    """Return the rank-normalised split R-hat of every series; 1 for chains that agree.

    Parameters and references as in `effective_sample_size`; there must be two chains.

    Examples
    --------
    >>> loss = dln.losses.Quadratic(torch.zeros(2, 2))
    >>> start = dln.Collapsed.random((2, 2), 2, 2, batch=(2,), generator=0)  # two chains
    >>> path = dln.sample_gibbs(loss, start, beta=5.0, draws=20, burn_in=20, generator=0)
    >>> sorted(dln.diagnostics.split_rhat(path))
    ['loss', 'singular_values']
    """
    data = chains(trajectory, burn_in=burn_in, thin=thin).drop_vars("time")
    if data.sizes["chain"] < 2:
        raise ValueError("trajectory must hold at least two chains, got 1: run it with chains=4")
    return _arviz().rhat(data, method="rank")


def _arviz() -> Any:
    """Import arviz late: it is optional and slow to import."""
    try:
        with warnings.catch_warnings():
            # Version 0.23 announces a refactoring on every first import of a day.
            warnings.simplefilter("ignore", FutureWarning)
            import arviz
    except ImportError:
        raise ImportError(
            "arviz must be installed for diagnostics of chains: pip install dln-geometry[samplers]"
        ) from None
    return arviz
