"""Read the data flow of a module: what feeds what, through which operations."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from dln_geometry.learning.layers import DeepLinear

__all__ = ["Traced", "trace", "untraceable"]

# What tracing raises where the path depends on values: no more is known than that it failed.
_FAILURES = (
    TraceError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)

# Of torch.nn, but made of other modules whose data flow is worth reading.
_COMPOSITE = (nn.Sequential, nn.TransformerEncoderLayer, nn.TransformerEncoder)

# Questions about a tensor that do not read its values.
_QUESTIONS = {"shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad"}
_QUESTION_METHODS = {"size", "dim", "numel", "ndimension", "get_device"}


@dataclass(frozen=True)
class Traced:
    """The graph of a module.

    Attributes
    ----------
    root : Module
        What was traced.
    graph : torch.fx.Graph
        Its operations.
    opaque : tuple of str
        Names of the modules whose inside could not be read; "" is the module itself.
    ranks : dict of Node to int
        Numbers of dimensions of the values, where an example input told.
    """

    root: nn.Module
    graph: fx.Graph
    opaque: tuple[str, ...]
    ranks: dict[fx.Node, int]

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Return the operations that read the values of a node."""
        return [user for user in node.users if not _is_question(user)]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, `None` if it calls something else."""
        if node.op != "call_module":
            return None
        return self.root.get_submodule(str(node.target))


def _is_question(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _QUESTION_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _QUESTIONS


class _Tracer(fx.Tracer):
    """Trace as far as possible: what cannot be read stays one opaque operation."""

    def __init__(self) -> None:
        super().__init__()
        self.opaque: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, DeepLinear):
            return True
        if isinstance(m, _COMPOSITE) and m.__module__.startswith("torch.nn"):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        last = next(reversed(self.graph.nodes), None)
        count = len(self.opaque)
        try:
            if type(m) is nn.TransformerEncoder:
                return self._encoder(m, *args, **kwargs)
            return super().call_module(m, forward, args, kwargs)
        except _FAILURES:
            for node in reversed(list(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)
            del self.opaque[count:]
            self.opaque.append(name)
            return self.create_proxy("call_module", name, args, kwargs)

    def _encoder(
        self,
        m: nn.TransformerEncoder,
        src: Any,
        mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: Any = None,
    ) -> Any:
        """Trace the layers of an encoder; its own code looks at the sizes of the input."""
        x = src
        for layer in m.layers:
            x = layer(x, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return x if m.norm is None else m.norm(x)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep attention from its fused path, which looks at values."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def trace(module: nn.Module, example_input: tuple[Any, ...] | None = None) -> Traced:
    """Return the graph of a module, as far as it can be read.

    Arguments of `forward` with defaults are taken at their defaults, unless the example gives
    more. A module that cannot be traced at all has an empty graph.

    Parameters
    ----------
    module : Module
        Read in the mode (training or evaluation) that it is in; not changed.
    example_input : tuple, optional
        Positional arguments of the module, to learn the numbers of dimensions.
    """
    tracer = _Tracer()
    given = 0 if example_input is None else len(example_input)
    try:
        with _plain_attention():
            graph = tracer.trace(module, concrete_args=_defaults(module, given))
    except _FAILURES:
        return Traced(module, fx.Graph(), ("",), {})
    opaque = tuple(tracer.opaque)
    ranks: dict[fx.Node, int] = {}
    if example_input is not None:
        # A copy: buffers change in training mode. The generators are put back afterwards.
        root = copy.deepcopy(module)
        with torch.random.fork_rng(), torch.no_grad(), _plain_attention():
            _Ranks(fx.GraphModule(root, graph), ranks, list(graph.nodes)).run(
                *example_input, *_rest(module, given)
            )
    return Traced(module, graph, opaque, ranks)


def _defaults(module: nn.Module, given: int) -> dict[str, Any]:
    """Return the arguments of `forward` that are left at their defaults."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    return {
        p.name: p.default
        for k, p in enumerate(parameters)
        if p.default is not p.empty and (k >= given or p.kind is p.KEYWORD_ONLY)
    }


def _rest(module: nn.Module, given: int) -> list[Any]:
    return list(_defaults(module, given).values())


class _Ranks(fx.Interpreter):
    """Run a graph and note the number of dimensions of every tensor."""

    def __init__(
        self, module: fx.GraphModule, ranks: dict[fx.Node, int], nodes: list[fx.Node]
    ) -> None:
        super().__init__(module)
        self.ranks = ranks
        # GraphModule copies the graph.
        self.original: dict[fx.Node, fx.Node] = dict(zip(module.graph.nodes, nodes, strict=True))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.ranks[self.original[n]] = value.ndim
        return value


def untraceable(traced: Traced) -> list[tuple[str, nn.Module]]:
    """Return the children of opaque modules, by name: places to look for more."""
    found = []
    for name in traced.opaque:
        parent = traced.root.get_submodule(name)
        found += [(f"{name}.{key}" if name else key, m) for key, m in parent.named_children()]
    return found
