"""The samples: f(x) = sum(sin(op(x))) in float64, for each entry of op_db and of module_db."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_flatten, tree_unflatten

MOST_ELEMENTS = 60  # of all inputs of a sample together
LARGE, MOST_LARGE = 4096, 3  # elements, and samples of one op, where only a corner varies
SEED = 0


@dataclass(frozen=True, eq=False)
class Sample:
    """A scalar function of the active tensors of one call, and these tensors.

    Args:
        name: of the op, the variant and the number of the sample.
        func: ``func(*inputs) -> Tensor`` with one element; the same at every call.
        inputs: float64, detached.
        elements: of the tensors that require grad.
    """

    name: str
    func: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    elements: int


def _sum_of_sines(outputs: Any) -> Tensor:
    """Of all that is differentiable; real and imaginary parts count as two numbers."""
    total = torch.zeros((), dtype=torch.float64)
    for y in tree_flatten(outputs)[0]:
        if not isinstance(y, Tensor) or not y.requires_grad:
            continue
        if y.is_complex():
            y = torch.view_as_real(y.resolve_conj())
        total = total + y.sin().sum()
    return total


def _box(shape: torch.Size, most: int) -> list[int]:
    """Sizes of a corner of a tensor with at most so many elements, whole along its last axes."""
    sizes = list(shape)
    for axis in range(len(sizes)):
        if math.prod(sizes) > most:
            sizes[axis] = max(1, most // math.prod(sizes[axis + 1 :]))
    return sizes


@dataclass(frozen=True, eq=False)
class _Corner:
    """A tensor of which only a corner varies."""

    rest: Tensor  # zero in the corner
    start: Tensor  # the corner
    margins: list[int]  # as torch.nn.functional.pad has them

    @staticmethod
    def of(whole: Tensor, most: int) -> "_Corner":
        sizes = _box(whole.shape, most)
        margins = [m for n, s in zip(whole.shape, sizes, strict=True) for m in (n - s, 0)]
        corner = tuple(slice(n) for n in sizes)
        rest = whole.clone()
        rest[corner] = 0
        return _Corner(rest, whole[corner].clone(), margins[::-1])

    def with_(self, corner: Tensor) -> Tensor:
        return self.rest + torch.nn.functional.pad(corner, self.margins)


def _sample(name: str, call: Callable[..., Any], arguments: Any) -> Sample | None:
    """``call(arguments)`` as a function of the tensors in them that require grad.

    Of large tensors only a corner varies, and the sample's name says so. None where there is
    nothing to differentiate.
    """
    leaves, spec = tree_flatten(arguments)
    active = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point()
        if leaf.layout is torch.strided and not leaf.is_nested
    ]
    if not active or any(leaves[i].numel() == 0 for i in active):
        return None
    elements = sum(leaves[i].numel() for i in active)
    whole = elements <= MOST_ELEMENTS
    held = [leaf.detach() if i in active else leaf for i, leaf in enumerate(leaves)]
    most = max(1, MOST_ELEMENTS // len(active))
    corners = None if whole else {i: _Corner.of(held[i], most) for i in active}

    def func(*inputs: Tensor) -> Tensor:
        torch.default_generator.manual_seed(SEED)
        filled = list(held)
        for i, x in zip(active, inputs, strict=True):
            filled[i] = x if corners is None else corners[i].with_(x)
        return _sum_of_sines(call(tree_unflatten(filled, spec)))

    if corners is None:
        return Sample(name, func, tuple(held[i] for i in active), elements)
    return Sample(name + " in part", func, tuple(corners[i].start for i in active), elements)


def _of_op(op: Any) -> Iterator[Sample]:
    def call(arguments: Any) -> Any:
        x, args, kwargs = arguments
        return op(x, *args, **kwargs)

    for number, s in enumerate(op.sample_inputs("cpu", torch.float64, requires_grad=True)):

        def processed(
            arguments: Any, after: Callable[[Any], Any] = s.output_process_fn_grad
        ) -> Any:
            return after(call(arguments))

        sample = _sample(f"{op.formatted_name}[{number}]", processed, (s.input, s.args, s.kwargs))
        if sample is not None:
            yield sample


def _of_module(info: Any) -> Iterator[Sample]:
    for training in (True, False):
        made = info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
        )
        for number, s in enumerate(made):
            torch.default_generator.manual_seed(SEED)
            args, kwargs = s.constructor_input.args, s.constructor_input.kwargs
            module = info.module_cls(*args, **kwargs).to(torch.float64).train(training)
            state = {k: v.detach().clone() for k, v in module.state_dict().items()}
            wanted = [n for n, p in module.named_parameters() if p.numel()]

            def call(
                arguments: Any,
                module: torch.nn.Module = module,
                state: dict[str, Tensor] = state,
            ) -> Any:
                parameters, args, kwargs = arguments
                held = {k: v.clone() for k, v in state.items() if k not in parameters}
                return torch.func.functional_call(module, {**held, **parameters}, args, kwargs)

            mode = "train" if training else "eval"
            name = f"{info.formatted_name}[{number}, {mode}]"
            forward = s.forward_input
            held = dict(module.named_parameters())
            parameters = {n: held[n] for n in wanted}
            sample = _sample(name, call, (parameters, forward.args, forward.kwargs))
            if sample is not None:
                yield sample


def _differentiable(op: Any) -> bool:
    return op.supports_autograd and torch.float64 in op.supported_dtypes("cpu")


@cache
def entries() -> dict[str, Callable[[], Iterator[Sample]]]:
    """Name of an op or a module -> its samples, made afresh at each call."""
    found: dict[str, Callable[[], Iterator[Sample]]] = {}
    for op in op_db:
        if _differentiable(op):
            found[op.formatted_name] = lambda op=op: _of_op(op)
    for info in module_db:
        if issubclass(info.module_cls, LazyModuleMixin):
            continue  # has no parameters yet; the module that it becomes has an entry of its own
        found["nn." + info.formatted_name] = lambda info=info: _of_module(info)
    return found


def samples(name: str) -> list[Sample]:
    """All samples of one entry; deterministic."""
    torch.default_generator.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(entries()[name]())
    by_size = sorted(found, key=lambda s: s.elements)
    small = [s for s in by_size if s.elements <= MOST_ELEMENTS]
    large = [s for s in by_size[len(small) :] if s.elements <= LARGE][:MOST_LARGE]
    chosen = small + large or by_size[:1]
    return [s for s in found if s in chosen]
