"""Watches runs of a network whose code we do not know: every call of every module, and which tensor is made from which.

Nothing is asked of names or classes. The axis of the images is the one that changes with the batch; attention is where
a softmax over places happens; and what never reaches the output is found by following each tensor.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from stvid.inflation.outputs import tensors_of

__all__ = ["Attending", "Call", "Record", "eagerly", "has_own_weights", "tensors_in", "watched", "without_history"]

_SOFTMAX = frozenset({F.softmax, torch.softmax, Tensor.softmax})
_PRODUCTS = frozenset({"conv1d", "conv2d", "conv3d", "linear", "matmul", "__matmul__", "mm", "bmm", "einsum"})
_PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)
_SHAPE = frozenset({"shape", "size", "dim", "ndim", "numel", "ndimension", "stride", "__len__"})
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Embedding,
)


@dataclass
class Call:
    """One call of a module.

    Attributes:
        argument: Position or keyword of the first tensor among the arguments, or if the output is not made from that
            one, of the first from which it is; None if there is none.
        shape: Shape of that tensor.
        took: Number of that tensor, for `Record.before` and the like.
        inputs: Numbers of all tensors among the arguments.
        alone: Whether the tensor is the only argument.
        at_stem: Whether no layer with weights came before, so that the module takes the image or what was made of it.
        output: Shape of the first tensor that it returned; None if there is none.
        gave: Numbers of all tensors that it returned.
        shapes: Shapes of the tensors among its arguments, by their position or keyword.
        vector: That tensor, where it has one vector for each image.
        whole: Whether the module returned one tensor and nothing else.
        contents: A number for each entry on the tensor's first axis that tells it from others; empty where that axis
            could hold nothing but images.
        order: Place among the ends of all calls.
    """

    argument: int | str | None
    shape: tuple[int, ...]
    took: int
    inputs: tuple[int, ...]
    alone: bool
    at_stem: bool
    output: tuple[int, ...] | None = None
    gave: tuple[int, ...] = ()
    shapes: dict[int | str, tuple[int, ...]] = field(default_factory=dict)
    vector: Tensor | None = None
    whole: bool = False
    contents: tuple[float, ...] = ()
    order: int = 0


@dataclass(frozen=True)
class Attending:
    """One softmax over places.

    Attributes:
        inside: Names of the modules that were running, outermost first.
        heads: How many heads there are; 0 if it could not be told.
    """

    inside: tuple[str, ...]
    heads: int


@dataclass
class Record:
    """The calls, tensors and softmaxes of one run of a network.

    Attributes:
        calls: The calls of each module that ran, in the order in which the modules ran first.
        attending: Each softmax over places.
        used_elsewhere: Names of modules whose weights took part in a computation outside the module.
        read_elsewhere: Names of modules of whose weights others read the shape.
        output: What the network returned.
        edges: For each tensor the numbers of those that it was made from.
        image: Number of the batch of images.
        numbers: Numbers of the tensors in the output, by their id.
        kept: What the modules whose outputs are to be kept returned first, where that was a tensor.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    attending: list[Attending] = field(default_factory=list)
    used_elsewhere: set[str] = field(default_factory=set)
    read_elsewhere: set[str] = field(default_factory=set)
    output: Any = None
    edges: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    image: int = 0
    numbers: dict[int, int] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)

    def before(self, tensors: Iterable[int]) -> set[int]:
        """Returns all tensors that these were made from, themselves included."""
        return _reached(tensors, self.edges)

    def behind(self, tensors: Iterable[int]) -> set[int]:
        """Returns all tensors that were made from these, themselves included."""
        return _reached(tensors, self._forwards)

    @functools.cached_property
    def _forwards(self) -> dict[int, set[int]]:
        forwards: dict[int, set[int]] = defaultdict(set)
        for made, sources in self.edges.items():
            for source in sources:
                forwards[source].add(made)
        return forwards


def _reached(start: Iterable[int], edges: dict[int, set[int]], *, beyond: int = 0) -> set[int]:
    """Follows edges from some tensors; those up to the number `beyond` are reached, but not followed further."""
    found = set(start)
    waiting = list(found)
    while waiting:
        number = waiting.pop()
        for other in edges.get(number, ()) if number > beyond else ():
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def has_own_weights(module: nn.Module) -> bool:
    """Returns whether a module itself, not one below it, has a matrix or a kernel, as layers do; norms have none."""
    if isinstance(module, _NORMS):
        return False
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    if "parametrizations" in module._modules:
        own += list(module._modules["parametrizations"].parameters())  # type: ignore[union-attr]
    return any(
        parameter.dim() >= 2 and parameter.shape[0] > 1 and sum(size > 1 for size in parameter.shape) >= 2
        for parameter in own
    )


def tensors_in(value: Any) -> list[Tensor]:
    """Returns the tensors in nested containers and in objects such as the outputs of transformers."""
    if isinstance(value, Tensor):
        return [value]
    if type(value) in (tuple, list):  # nearly all that functions take and give, without the time that pytrees take
        return [tensor for part in value if not isinstance(part, _PLAIN) for tensor in tensors_in(part)]
    if type(value) is dict:
        return tensors_in(list(value.values()))
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@contextmanager
def eagerly() -> Iterator[None]:
    """Runs functions that were compiled by torch.compile as they are written."""
    with torch.compiler.set_stance("force_eager"):
        yield


class _Numbers:
    """Gives each tensor a number, as long as it lives; a later one at the same address gets another."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.count = 0

    def of(self, tensor: Tensor) -> int:
        entry = self.known.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        self.count += 1
        self.known[id(tensor)] = (weakref.ref(tensor), self.count)
        return self.count


class _Watch(TorchFunctionMode):
    """Follows the tensors through every function of torch that the network calls."""

    def __init__(self, network: nn.Module, record: Record, batch: int, keep: Collection[str]) -> None:
        super().__init__()
        self.record = record
        self.batch = batch
        self.keep = keep
        self.numbers = _Numbers()
        self.running: list[str] = []
        self.begun: list[int] = []
        self.ended = 0
        self.behind_layer: set[int] = set()
        self.from_weights: set[int] = set()
        self.modules = dict(network.named_modules())
        self.owners: dict[int, str] = {}
        for name, module in self.modules.items():
            layer = name.split(".parametrizations", 1)[0]
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.owners.setdefault(id(parameter), layer)

    # --- functions ----------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function, and notes what it takes and makes."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = tensors_in((args, kwargs))
        if inputs:
            self._note(func, inputs, tensors_in(result))
            self._note_attention(func, args, kwargs)
        return result

    def _note(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for tensor in inputs:
            owner = self.owners.get(id(tensor))
            if owner is not None and owner not in self.running:
                if outputs:
                    self.record.used_elsewhere.add(owner)
                elif _name_of(func) in _SHAPE:
                    self.record.read_elsewhere.add(owner)
        if _changes_its_input(func):
            outputs = [*outputs, inputs[0]]
            if inputs[0]._base is not None:
                outputs.append(inputs[0]._base)
        self.link(inputs, outputs, product=_name_of(func) in _PRODUCTS)

    def link(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor], *, product: bool = False) -> None:
        """Notes that tensors were made from others; a product with weights does what a layer does."""
        inputs = list(inputs)
        sources = {self.numbers.of(tensor) for tensor in inputs}
        from_weights = bool(sources & self.from_weights) or any(id(tensor) in self.owners for tensor in inputs)
        for tensor in outputs:
            number = self.numbers.of(tensor)
            self.record.edges[number] |= sources - {number}
            if from_weights:
                self.from_weights.add(number)
            if (product and from_weights) or sources & self.behind_layer:
                self.behind_layer.add(number)

    def _note_attention(self, func: Any, args: Any, kwargs: Any) -> None:
        heads: int | None = None
        if func in _SOFTMAX:
            heads = _heads_of_scores(args, kwargs)
        elif func is F.scaled_dot_product_attention:
            query: Tensor = args[0] if args else kwargs["query"]
            heads = query.shape[-3] if query.dim() >= 4 else 0
        elif func is F.multi_head_attention_forward:
            heads = int(kwargs["num_heads"] if "num_heads" in kwargs else args[4])
        elif _name_of(func) == "flex_attention":  # the operator within torch's function of this name
            heads = args[0].shape[-3]
        if heads is not None:
            self.record.attending.append(Attending(tuple(self.running), heads))

    # --- modules ------------------------------------------------------------------------------------------------------

    def enter(self, name: str, args: Any, kwargs: Any) -> None:
        """Notes the begin of a call."""
        self.running.append(name)
        with torch._C.DisableTorchFunction():
            places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            first = next(((place, value) for place, value in places if isinstance(value, Tensor)), None)
            inputs = tuple(self.numbers.of(tensor) for tensor in tensors_in((args, kwargs)))
            place, tensor = first if first is not None else (None, None)
            self.begun.append(self.numbers.count)
            call = Call(
                argument=place,
                shape=() if tensor is None else _shape_of(tensor),
                took=0 if tensor is None else self.numbers.of(tensor),
                inputs=inputs,
                alone=len(places) == 1 and place == 0,
                at_stem=not self.behind_layer.intersection(inputs),
                shapes={place: _shape_of(value) for place, value in places if isinstance(value, Tensor)},
                vector=tensor if tensor is not None and tensor.dim() == 2 and len(tensor) == self.batch else None,
                contents=() if tensor is None else _contents(tensor, self.batch),
            )
            self.record.calls.setdefault(name, []).append(call)

    def leave(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """Notes the end of a call."""
        with torch._C.DisableTorchFunction():
            self.running.pop()
            call = next(call for call in reversed(self.record.calls[name]) if not call.order)
            outputs = list(tensors_of(output).values())
            self._find_argument(call, [*enumerate(args), *kwargs.items()], outputs, self.begun.pop())
            self.link(tensors_in((args, kwargs)), outputs)  # also where a function of the user's own lies between
            first = output[0] if isinstance(output, tuple) and output else output
            call.output = _shape_of(first) if isinstance(first, Tensor) else None
            call.whole = isinstance(output, Tensor)
            call.gave = tuple(self.numbers.of(tensor) for tensor in outputs)
            self.ended += 1
            call.order = self.ended
            if has_own_weights(self.modules[name]):
                self.behind_layer.update(call.gave)
            if name in self.keep and isinstance(output, Tensor):
                self.record.kept.setdefault(name, output)

    def _find_argument(
        self, call: Call, places: list[tuple[int | str, Any]], outputs: list[Tensor], before: int
    ) -> None:
        """Takes the next tensor among the arguments where the output is not made from the first, but from that one.

        Args:
            call: What is known of the call.
            places: Its arguments with their positions and keywords.
            outputs: What it returned.
            before: How many tensors there were when it began.
        """
        tensors = [(place, value) for place, value in places if isinstance(value, Tensor)]
        if len(tensors) < 2:
            return
        used = _reached({self.numbers.of(tensor) for tensor in outputs}, self.record.edges, beyond=before)
        found = next(((place, tensor) for place, tensor in tensors if self.numbers.of(tensor) in used), None)
        if found is not None and found[0] != call.argument:
            call.argument, call.shape, call.took = found[0], _shape_of(found[1]), self.numbers.of(found[1])


def watched(
    network: nn.Module, images: Tensor, *, functions: bool = True, keep: Collection[str] = frozenset()
) -> Record:
    """Runs a network and returns what it did.

    Args:
        network: In the mode in which it is to run.
        images: A batch that it takes.
        functions: Whether to follow tensors through functions, too; without, only the calls of modules are noted.
        keep: Names of the modules whose outputs are kept.
    """
    record = Record()
    watch = _Watch(network, record, len(images), keep)
    with ExitStack() as stack:
        for name, module in watch.modules.items():
            if not name:
                continue
            enter: Any = functools.partial(_enter, watch, name)
            leave: Any = functools.partial(_leave, watch, name)
            stack.callback(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        with eagerly(), watch if functions else contextlib.nullcontext():
            record.output = network(images)
        record.image = watch.numbers.of(images)
        record.numbers = {id(tensor): watch.numbers.of(tensor) for tensor in tensors_of(record.output).values()}
    return record


def _enter(watch: _Watch, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    watch.enter(name, args, kwargs)


def _leave(watch: _Watch, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    watch.leave(name, args, kwargs, output)


def _shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Returns the shape of a tensor; an empty one for a nested tensor, whose entries have different shapes."""
    return () if tensor.is_nested else tuple(tensor.shape)


def _contents(tensor: Tensor, batch: int) -> tuple[float, ...]:
    """Returns a number for each entry on the first axis of a tensor that could hold windows of images there.

    It is a sum with random weights, since behind a norm the means and the squares of all entries are the same.
    """
    entries = tensor.shape[0] if tensor.dim() >= 3 and not tensor.is_nested else 0
    if entries <= batch or entries % batch or tensor.is_meta or not tensor.is_floating_point():
        return ()
    flat = tensor.flatten(1).float()
    weights = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0))
    return tuple((flat @ weights.to(flat.device)).tolist())


def _name_of(func: Any) -> str:
    """Returns the name of a function; of a property (``Tensor.shape.__get__``) that of the property."""
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name


def _changes_its_input(func: Any) -> bool:
    name = _name_of(func)
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _heads_of_scores(args: Any, kwargs: Any) -> int | None:
    """Returns how many heads a softmax over places has, 0 if that is not clear; None if it goes over something else.

    Scores are (..., queries, keys), or the other way round where there are heads. A softmax over experts, branches or
    classes has one query, or another axis: in (images, branches, channels) the branches.
    """
    scores: Tensor = args[0] if args else kwargs["input"]
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if scores.dim() < 3 or not isinstance(axis, int) or axis % scores.dim() < scores.dim() - 2:
        return None
    if min(scores.shape[-2:]) < 2 or (scores.dim() == 3 and axis % 3 == 1):
        return None
    return scores.shape[1] if scores.dim() >= 4 else 0


def without_history(network: nn.Module) -> dict[int, Any]:
    """Returns a memo for `copy.deepcopy`, with a detached copy for each tensor that was computed and is kept.

    Such as the ``weight`` of `torch.nn.utils.weight_norm`, or what a layer of the user's remembers of the last batch.
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        for tensor in tensors_in([value for value in vars(module).values() if not isinstance(value, nn.Module)]):
            if tensor.grad_fn is not None:
                memo[id(tensor)] = tensor.detach().clone()
    return memo
