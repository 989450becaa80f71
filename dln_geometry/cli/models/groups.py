"""The symmetric groups whose charges are told: those of a stated model, or of bare layers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dln_geometry.cli.files import option
from dln_geometry.cli.models.chains import chains_of, matrices_of
from dln_geometry.cli.report import read_integers
from dln_geometry.learning import Part, SymmetricGroup, symmetries_of


def load_model(text: str) -> nn.Module:
    """Return the model that ``file.py:NAME`` or ``package.module:NAME`` names; its code is run."""
    place, found, name = text.rpartition(":")
    if not found or not place or not name:
        raise ValueError(f"--model must be file.py:NAME or package.module:NAME, got {text}")
    path = Path(place)
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"--model must name a file of Python, got no file {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses and pickles of the file look it up.
        sys.modules.setdefault(path.stem, module)
        _run_code(text, lambda: spec.loader.exec_module(module))  # pyright: ignore
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = _run_code(text, lambda: importlib.import_module(place))
        finally:
            sys.path.pop(0)
    if not hasattr(module, name):
        raise ValueError(f"--model must name a thing of {place}, got {name}, which it has not")
    made = getattr(module, name)
    if not isinstance(made, nn.Module):
        made = _run_code(text, made) if callable(made) else made
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"--model must name a torch.nn.Module or a function that makes one, got {text}, "
            f"which is {type(made).__name__}"
        )
    return made


def _run_code(text: str, code: Any) -> Any:
    """Run the user's code; its errors name the option."""
    try:
        return code()
    except Exception as error:
        raise ValueError(f"--model: {text} raised {type(error).__name__}: {error}") from None


def groups_of_model(model: nn.Module, sides: str | None, loss: str | None) -> list[SymmetricGroup]:
    """Return the continuous groups of a model, tried out on a random input of this shape."""
    example = None
    if sides is not None:
        shape = read_integers(sides, "--example-input")
        if min(shape) < 1:
            raise ValueError(f"--example-input must be positive integers, got {sides}")
        kind = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)
    with option("model"):
        found = symmetries_of(model, example, loss=loss)
    groups = [group for group in found if group.is_plain and group.kind != "permutation"]
    if not groups:
        raise ValueError("--model must have symmetries with charges, got none")
    return groups


def groups_of_layers(held: Mapping[str, Tensor], *, relu: bool) -> list[SymmetricGroup]:
    """Return the gauges of linear layers that follow each other, with their biases.

    With ReLU between them only positive rescalings of the hidden units are left.
    """
    layers, _ = matrices_of(held, None)
    groups = []
    for a, b in (pair for names in chains_of(layers) for pair in pairwise(names)):
        width = layers[a].shape[0]
        bias = a.removesuffix("weight") + "bias"
        parts = [a]
        if a.endswith("weight") and bias in held and tuple(held[bias].shape) == (width,):
            parts.append(bias)
        first = tuple(Part(name, axis=0, units=1, block=width) for name in parts)
        group = SymmetricGroup("gauge", first, (Part(b, axis=1, units=1, block=width),))
        groups.append(group.diagonal() if relu else group)
    if not groups:
        raise ValueError("two layers must follow each other by their shapes, got none: --model")
    return groups


def weights_of(held: Mapping[str, Tensor], names: Sequence[str], path: Path) -> dict[str, Tensor]:
    """Return the tensors of these names, which a checkpoint may keep under a prefix."""
    found = {}
    for name in names:
        keys = [name] if name in held else [key for key in held if key.endswith(f".{name}")]
        if len(keys) != 1:
            got = "none" if not keys else ", ".join(keys)
            raise ValueError(f"{path} must hold {name} once, got {got}")
        found[name] = held[keys[0]]
    return found


def label_of(group: SymmetricGroup) -> str:
    """Return the name of a group: its kind and its parameters."""
    return f"{group.kind}({', '.join(group.names)})"
