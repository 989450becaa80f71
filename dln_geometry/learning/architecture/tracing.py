"""Read the graph of a module: which operations read which values and parameters."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from dln_geometry.learning.architecture.shaking import same_draws
from dln_geometry.learning.functional import Bare
from dln_geometry.learning.layers import DeepLinear

# `forward` may raise these when its path depends on values (torch.fx's TraceError is a ValueError).
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError)
_FAILURES += (RuntimeError, TypeError, ValueError)

# Modules of torch.nn that consist of others: read inside them too.
_COMPOSITE = (nn.Sequential, nn.TransformerEncoderLayer, nn.TransformerEncoder)

# A graph has no more operations.
_MOST_OPERATIONS = 200_000

# Attributes and methods of a tensor that do not read its values.
_QUESTIONS = {"shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad"}
_QUESTION_METHODS = {"size", "dim", "numel", "ndimension", "get_device"}


@dataclass(frozen=True)
class TracedNetwork:
    """The graph of a module (empty if it cannot be traced), and how often parameters are used."""

    root: nn.Module
    graph: fx.Graph = field(default_factory=fx.Graph)
    opaque: tuple[str, ...] = ("",)  # modules that torch.fx cannot read; "" is the root itself
    reason: str = ""  # why the first of them could not be read
    ranks: dict[fx.Node, int] = field(default_factory=dict)  # dimensions, given an example input
    names: dict[int, str] = field(default_factory=dict)  # of the parameters by id(parameter)
    uses: Counter[str] = field(default_factory=Counter)  # how many operations read each parameter

    def __post_init__(self) -> None:
        self.names.update({id(p): name for name, p in self.root.named_parameters()})
        for node in self.graph.nodes:
            value = self._attribute(node)
            if isinstance(value, nn.Module):
                self.uses.update(self.names[id(p)] for p in value.parameters())
            elif id(value) in self.names:
                self.uses[self.names[id(value)]] += len(node.users)

    @classmethod
    def of(cls, module: nn.Module, call: Any = None) -> TracedNetwork:
        """Trace a module in its present mode (training or evaluation), as far as possible.

        The tensors in the arguments of the call are inputs, all else in it is a constant; without a
        call, the arguments without defaults are inputs.
        """
        tracer = _Tracer(call)
        try:
            with same_draws(), _plain_attention():
                graph = tracer.trace(module)
        except _FAILURES as error:
            return cls(module, reason=_why_untraced(error))
        ranks: dict[fx.Node, int] = {}
        if call is not None:
            # A copy, since buffers change in training mode.
            root = copy.deepcopy(module)
            inputs = [x.clone() for x in tree_leaves(call) if isinstance(x, Tensor)]
            devices = {x.device for x in (*root.parameters(), *inputs)}
            gpus = [d.index for d in devices if d.type == "cuda"]
            with same_draws(gpus), torch.no_grad(), _plain_attention():
                interpreter = _Ranks(fx.GraphModule(root, graph), graph)
                try:
                    interpreter.run(*inputs)
                except _FAILURES as error:
                    return cls(module, reason=_why_untraced(error))
            ranks = interpreter.ranks
        return cls(module, graph, tuple(tracer.opaque), tracer.reason, ranks)

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Return the operations that read the values of a node."""
        return [user for user in node.users if not _is_question(user)]

    def module(self, node: fx.Node) -> Any:
        """Return the module that a node calls, if it calls one."""
        return self._attribute(node) if node.op == "call_module" else None

    def parameter(self, node: fx.Node, attribute: str = "") -> str | None:
        """Return the name of the parameter at a node, `None` if other operations use it too.

        It is the value that the node gets, or an attribute of the module that the node calls.
        """
        name = self.names.get(id(self._attribute(node, attribute)))
        return name if name is not None and self.uses[name] == 1 else None

    def _attribute(self, node: fx.Node, attribute: str = "") -> Any:
        if node.op not in ("call_module", "get_attr"):
            return None
        value: Any = self.root
        for key in filter(None, f"{node.target}.{attribute}".split(".")):
            value = getattr(value, key, None)
        return value

    def inside_opaque(self) -> list[tuple[str, nn.Module]]:
        """Return the children of opaque modules by name; they can be traced on their own."""
        return [
            (f"{name}.{key}" if name else key, child)
            for name in self.opaque
            for key, child in self.root.get_submodule(name).named_children()
        ]


def _why_untraced(error: BaseException) -> str:
    """Return the line of the user's code where tracing failed, and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(p in f.filename for p in ("/torch/", "dln_geometry/"))]
    where = f"{own[-1].filename.rpartition('/')[2]}:{own[-1].lineno}: " if own else ""
    text = str(error).partition("\n")[0]
    return f"{where}{type(error).__name__}: {text[:120]}"


def _is_question(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _QUESTION_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _QUESTIONS


class _Tracer(fx.Tracer):
    """Trace as far as possible: a module that cannot be read becomes one opaque operation."""

    def __init__(self, call: Any = None) -> None:
        super().__init__()
        self.call, self.opaque, self.count, self.reason = call, list[str](), 0, ""

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return the function of the module and its inputs, one for each tensor of the call."""

        def inputs() -> Iterator[Any]:
            while True:
                yield self.create_proxy("placeholder", f"input_{len(self.graph.nodes)}", (), {})

        source = inputs()
        if self.call is None:
            required = _required(self.root)
            args = [next(source) for keyword in required.values() if not keyword]
            kwargs = {name: next(source) for name, keyword in required.items() if keyword}
        else:
            args, kwargs = tree_map(
                lambda x: next(source) if isinstance(x, Tensor) else x, self.call
            )
        # No partial: torch.fx reads annotations, which a partial has not.
        return lambda *given: root_fn(*given, **kwargs), [self.root, *args]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Add an operation; refuse those of a loop that does not end for want of values."""
        self.count += 1
        if self.count > _MOST_OPERATIONS:
            raise RuntimeError(f"forward makes more than {_MOST_OPERATIONS} operations")
        return super().create_node(*args, **kwargs)

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
                return _encoded(m, *args, **kwargs)
            return super().call_module(m, forward, args, kwargs)
        except _FAILURES as error:
            self.reason = self.reason or _why_untraced(error)
            for node in reversed(list(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)
            del self.opaque[count:]
            self.opaque.append(name)
            return self.create_proxy("call_module", name, args, kwargs)


def _encoded(
    m: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None
) -> Any:
    """Call the layers of an encoder one by one: its own `forward` reads sizes of the input."""
    for layer in m.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return src if m.norm is None else m.norm(src)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Turn off the fused path of attention, which reads values."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _required(module: nn.Module) -> dict[str, bool]:
    """Return the arguments of `forward` without defaults, and whether they need their names."""
    while isinstance(module, Bare):
        module = getattr(module, module.inner_name)
    parameters = inspect.signature(module.forward).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        p.name: p.kind is p.KEYWORD_ONLY
        for p in parameters
        if p.default is p.empty and p.kind not in several
    }


class _Ranks(fx.Interpreter):
    """Run a graph and note the number of dimensions of every tensor."""

    def __init__(self, module: fx.GraphModule, graph: fx.Graph) -> None:
        super().__init__(module)
        self.ranks: dict[fx.Node, int] = {}
        # GraphModule copies the graph.
        self.original = dict(zip(module.graph.nodes, graph.nodes, strict=True))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.ranks[self.original[n]] = value.ndim
        return value
