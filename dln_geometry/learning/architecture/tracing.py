"""Read the graph of a module: which operations read which values and parameters."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from dln_geometry.learning.layers import DeepLinear

# Errors of `forward` that mean no more than that its path depends on values (torch.fx's own
# TraceError is a ValueError).
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NameError),
    *(RuntimeError, TypeError, ValueError),
)

# Modules of torch.nn that are made of others, whose graph is read too.
_COMPOSITE = (nn.Sequential, nn.TransformerEncoderLayer, nn.TransformerEncoder)

# Questions about a tensor that do not read its values.
_QUESTIONS = {"shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad"}
_QUESTION_METHODS = {"size", "dim", "numel", "ndimension", "get_device"}


@dataclass(frozen=True)
class TracedNetwork:
    """The graph of a module with the use of its parameters.

    Attributes
    ----------
    root : Module
        The module that was traced.
    graph : torch.fx.Graph
        Its operations; none if it could not be traced.
    opaque : tuple of str
        Names of the modules whose inside could not be read; "" is the module itself.
    ranks : dict of Node to int
        Numbers of dimensions of the values, if there was an example input.
    names : dict of int to str
        Names of the parameters by ``id(parameter)``.
    uses : Counter of str
        How many operations read each parameter.
    """

    root: nn.Module
    graph: fx.Graph = field(default_factory=fx.Graph)
    opaque: tuple[str, ...] = ("",)
    ranks: dict[fx.Node, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, module: nn.Module, example_input: tuple[Any, ...] | None = None) -> TracedNetwork:
        """Trace a module, as far as it can be read.

        It is read in the mode (training or evaluation) that it is in, and not changed. Arguments
        of `forward` that have defaults are left at them, unless the example (a tuple of positional
        arguments) gives more.
        """
        tracer = _Tracer()
        defaults = _defaults(module, 0 if example_input is None else len(example_input))
        try:
            with _plain_attention():
                graph = tracer.trace(module, concrete_args=defaults)
        except _FAILURES:
            return cls(module)
        ranks: dict[fx.Node, int] = {}
        if example_input is not None:
            # A copy, since buffers change in training mode; the generators are restored.
            root = copy.deepcopy(module)
            with torch.random.fork_rng(), torch.no_grad(), _plain_attention():
                interpreter = _Ranks(fx.GraphModule(root, graph), ranks, list(graph.nodes))
                interpreter.run(*example_input, *defaults.values())
        names = {id(p): name for name, p in module.named_parameters()}
        network = cls(module, graph, tuple(tracer.opaque), ranks, names)
        network._count_uses()
        return network

    def _count_uses(self) -> None:
        for node in self.graph.nodes:
            value = self._attribute(node)
            if isinstance(value, nn.Module):
                self.uses.update(self.names[id(p)] for p in value.parameters())
            elif id(value) in self.names:
                self.uses[self.names[id(value)]] += len(node.users)

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Return the operations that read the values of a node."""
        return [user for user in node.users if not _is_question(user)]

    def module(self, node: fx.Node) -> Any:
        """Return the module that a node calls, `None` if it calls something else."""
        return self._attribute(node) if node.op == "call_module" else None

    def parameter(self, node: fx.Node, attribute: str = "") -> str | None:
        """Return the name of a parameter that no other operation uses, `None` otherwise.

        It is an attribute of the module that a node calls, or the value that a node gets.
        """
        name = self.names.get(id(self._attribute(node, attribute)))
        return name if name is not None and self.uses[name] == 1 else None

    def _attribute(self, node: fx.Node, attribute: str = "") -> Any:
        if node.op not in ("call_module", "get_attr"):
            return None
        value: Any = self.root
        for key in [*str(node.target).split("."), *filter(None, attribute.split("."))]:
            value = getattr(value, key, None)
        return value

    def inside_opaque(self) -> list[tuple[str, nn.Module]]:
        """Return the children of opaque modules by name, which may be traced on their own."""
        return [
            (f"{name}.{key}" if name else key, child)
            for name in self.opaque
            for key, child in self.root.get_submodule(name).named_children()
        ]


def _is_question(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _QUESTION_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _QUESTIONS


class _Tracer(fx.Tracer):
    """Trace as far as possible: a module that cannot be read becomes one opaque operation."""

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
        """Trace the layers of an encoder; its own `forward` looks at the sizes of the input."""
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


def _defaults(module: nn.Module, given: int) -> dict[str, Any]:
    """Return the arguments of `forward` that are left at their defaults."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {
        p.name: p.default
        for k, p in enumerate(parameters)
        if p.default is not p.empty and (k >= given or p.kind is p.KEYWORD_ONLY)
    }


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
