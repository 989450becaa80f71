"""Which matrices of a checkpoint are layers that follow each other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def matrices_of(
    held: Mapping[str, Tensor], names: str | None, *, transposed: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the layers from the input on, and the names that were left out.

    All matrices of real numbers in the order of the file, or those that are named.
    """
    if names is None:
        chosen = [k for k, x in held.items() if x.ndim == 2 and x.is_floating_point() and x.numel()]
        if not chosen:
            shapes = ", ".join(f"{k} {tuple(x.shape)}" for k, x in list(held.items())[:4])
            raise ValueError(f"the file must hold matrices of real numbers, got {shapes}")
    else:
        chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in held:
            known = ", ".join(list(held)[:8])
            raise ValueError(f"--layers must name tensors of the file, {known}, got {name!r}")
        x = held[name]
        if x.ndim != 2 or not x.numel() or not x.is_floating_point():
            raise ValueError(
                f"--layers must name matrices of real numbers, got {name} of shape {tuple(x.shape)}"
            )
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name} must hold finite numbers, got NaN or infinite entries")
    layers = {name: held[name].mT if transposed else held[name] for name in chosen}
    return layers, [name for name in held if name not in layers]


def chains_of(layers: Mapping[str, Tensor]) -> list[list[str]]:
    """Return runs of layers, each as wide at its input as the one before at its output."""
    found: list[list[str]] = []
    for name, w in layers.items():
        if found and layers[found[-1][-1]].shape[0] == w.shape[1]:
            found[-1].append(name)
        else:
            found.append([name])
    return found
