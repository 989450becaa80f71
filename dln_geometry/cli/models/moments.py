"""Spectra and moments of the layers of a checkpoint: ``dln moments``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dln_geometry import plot
from dln_geometry.cli.exchange import ARRAYS, check_results, read_weights, save_figure, write_arrays
from dln_geometry.cli.files import deciding, memory_budget
from dln_geometry.cli.machine import as_machine
from dln_geometry.cli.models.chains import chains_of, matrices_of
from dln_geometry.cli.report import number, print_json, print_table
from dln_geometry.geometry.points import effective_rank, end_to_end, is_balanced, moments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPECTRA = 8
"""Layers that the figure shows at most."""


def print_moments(
    model: Path,
    layers: str | None,
    transpose: bool,
    out: Path | None,
    figure: Path | None,
    device: str,
    dtype: str,
    max_memory: float | None,
    as_json: bool,
    force: bool,
) -> None:
    """Read a checkpoint, find its chains of layers, and tell spectra and moments."""
    machine, budget = as_machine(device, dtype), memory_budget(max_memory)
    check_results(out, ARRAYS, figure, (model,), force=force)
    with deciding():
        held = read_weights(model, budget)
    chosen, left_out = matrices_of(held, layers, transposed=transpose)
    weights = {name: machine.tensor(w) for name, w in chosen.items()}
    chains = chains_of(weights)
    if layers is not None and len(chains) > 1:
        a, b = chains[0][-1], chains[1][0]
        raise ValueError(
            f"--layers must follow each other, got {a} of shape {tuple(weights[a].shape)} before "
            f"{b} of shape {tuple(weights[b].shape)}: --transpose if the file holds W^T"
        )
    spectra = {name: torch.linalg.svdvals(w) for name, w in weights.items()}
    made = [_chain(names, [weights[name] for name in names]) for names in chains if names[1:]]
    products = {f"chain {k}": s["spectrum"] for k, s in enumerate(made, start=1)}
    if out is not None:
        write_arrays(
            out,
            {
                f"{a}->{b}": g.cpu().numpy()
                for chain in made
                for (a, b), g in zip(pairwise(chain["names"]), chain["moments"], strict=True)
            }
            if made
            else _refuse_empty(model),
        )
    if figure is not None:
        save_figure(_spectra(spectra, products), figure, 200)
    written = [path for path in (out, figure) if path is not None]
    if as_json:
        told = [_layer(name, weights[name], s) for name, s in spectra.items()]
        found = {"layers": told, "chains": [_in_json(chain) for chain in made]}
        print_json(found | {"left_out": left_out, "written": written})
        return
    _print(model, weights, spectra, made, left_out)
    if written:
        print(f"written: {', '.join(map(str, written))}")


def _refuse_empty(model: Path) -> dict[str, Any]:
    raise ValueError(f"--out needs layers that follow each other, got none in {model}")


def _layer(name: str, w: Tensor, s: Tensor) -> dict[str, Any]:
    """Return the numbers of a layer."""
    ranks = {kind: float(effective_rank(s, kind=kind)) for kind in ("entropy", "stable")}
    rank = effective_rank(s, kind="numerical", rtol=max(w.shape) * torch.finfo(s.dtype).eps)
    return {
        "name": name,
        "shape": list(w.shape),
        "norm": float(torch.linalg.norm(w)),
        "rank": int(rank),
        "effective_rank": ranks["entropy"],
        "stable_rank": ranks["stable"],
        "singular_values": s,
    }


def _chain(names: Sequence[str], layers: Sequence[Tensor]) -> dict[str, Any]:
    """Return moments and product of layers that follow each other."""
    found = moments(layers)
    # Both terms of a moment, for it is to be small beside them.
    sizes = [
        float(torch.linalg.norm(b.mT @ b) + torch.linalg.norm(a @ a.mT))
        for a, b in pairwise(layers)
    ]
    norms = [float(torch.linalg.norm(g)) for g in found]
    return {
        "names": list(names),
        "moments": found,
        "norms": norms,
        "traces": [float(g.trace()) for g in found],
        "imbalance": [x / size if size > 0 else 0.0 for x, size in zip(norms, sizes, strict=True)],
        "balanced": bool(is_balanced(layers)),
        "spectrum": torch.linalg.svdvals(end_to_end(layers)),
        "shape": [layers[-1].shape[0], layers[0].shape[1]],
    }


def _in_json(chain: dict[str, Any]) -> dict[str, Any]:
    s = chain["spectrum"]
    return {
        "layers": chain["names"],
        "depth": len(chain["names"]),
        "shape": chain["shape"],
        "balanced": chain["balanced"],
        "imbalance": chain["imbalance"],
        "moment_norms": chain["norms"],
        "moment_traces": chain["traces"],
        "end_to_end": {"singular_values": s, "effective_rank": float(effective_rank(s))},
    }


def _print(
    model: Path,
    weights: dict[str, Tensor],
    spectra: dict[str, Tensor],
    made: Sequence[dict[str, Any]],
    left_out: Sequence[str],
) -> None:
    rows = []
    for name, s in spectra.items():
        at = _layer(name, weights[name], s)
        ranks = (str(at["rank"]), number(at["effective_rank"]), number(at["stable_rank"]))
        sides = " x ".join(map(str, at["shape"]))
        rows.append((name, sides, number(at["norm"]), *ranks, number(float(s[0]))))
    columns = ("layer", "shape", "norm", "rank", "effective\nrank", "stable\nrank", "largest s")
    print_table(f"Layers of {model.name}", columns, rows)
    for k, chain in enumerate(made, start=1):
        columns = ("moment between", "norm", "trace", "imbalance")
        pairs = zip(
            pairwise(chain["names"]), chain["norms"], chain["traces"], chain["imbalance"],
            strict=True,
        )  # fmt: skip
        lines = [(f"{a}, {b}", number(x), number(t), f"{r:.2g}") for (a, b), x, t, r in pairs]
        s = chain["spectrum"]
        shown = ", ".join(number(float(x)) for x in s[:6]) + (", ..." if len(s) > 6 else "")
        balanced = "balanced" if chain["balanced"] else "not balanced"
        print_table(
            f"Chain {k}: {len(chain['names'])} layers, {balanced}",
            columns,
            lines,
            "G = W_{p+1}^T W_{p+1} - W_p W_p^T; imbalance: its norm over those of both terms.\n"
            f"Product: effective rank {number(float(effective_rank(s)))}, singular values {shown}",
        )
    if not made:
        print("note: no two matrices follow each other: there are no moments")
    if left_out:
        more = f" and {len(left_out) - 6} more" if len(left_out) > 6 else ""
        print(f"note: left out, being no matrices: {', '.join(left_out[:6])}{more}")


def _spectra(spectra: dict[str, Tensor], products: dict[str, Tensor]) -> Figure:
    """Draw the singular values of the layers and of the products."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    ax = figure.add_subplot()
    for name, s in list(spectra.items())[:_SPECTRA]:
        plot.spectrum(s.diag(), ax, label=name, marker=".", linewidth=0.8)
    for name, s in products.items():
        plot.spectrum(s.diag(), ax, label=f"product of {name}", color="k", linestyle="--")
    ax.legend(frameon=False, fontsize=8)
    return figure
