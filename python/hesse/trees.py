"""Pytrees between the user and the engine: inputs are a tree, the engine sees its leaves.

    inputs -> leaves, Structure           results, one per leaf -> a tree like the inputs
    tree <-> vector [N]                   tree of trees of blocks <-> matrix [N, N]

A tuple is the positional arguments of ``func``; a Tensor or any other tree is its one argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclasses.dataclass(frozen=True)
class Structure:
    """How the leaves sit in the inputs of a call.

    Attributes:
        spec: of the whole tree.
        positional: whether the tree is a tuple of arguments rather than one argument.
    """

    spec: pytree.TreeSpec
    positional: bool

    def build(self, results: Sequence[Any]) -> Any:
        """A tree like the inputs that holds ``results``, one per leaf and in their order."""
        return pytree.tree_unflatten(results, self.spec)

    def blocks(self, blocks: Sequence[Sequence[Any]]) -> Any:
        """A tree of trees: ``blocks[i][j]`` at leaf i of the outer and leaf j of the inner."""
        return self.build([self.build(row) for row in blocks])

    def call(self, func: Callable[..., Any], leaves: Sequence[Tensor]) -> Any:
        """``func`` of these leaves, as its arguments or its argument."""
        inputs = self.build(leaves)
        return func(*inputs) if self.positional else func(inputs)

    def directions(
        self, v: Any, leaves: Sequence[Tensor], name: str
    ) -> tuple[list[Tensor], int | None]:
        """The leaves of ``v``, which must be a tree like the inputs.

        Args:
            v: leaves of shape ``S`` each, or all ``[K, *S]``; dictionaries in any order.
            leaves: of the inputs, of shapes ``S``.
            name: of the public call, for its errors.

        Returns:
            The leaves in the order of the inputs', and K, or None where ``v`` is one direction.

        Raises:
            TypeError: ``hesse.hvp: v['w'] has dtype torch.float32, the input torch.float64: ...``
                and the same of devices; a leaf that is no real floating-point tensor.
            ValueError: ``hesse.hvp: v must be a tree like the inputs: ...``, ``hesse.hvp: v['w']
                has shape (2,), the input (3,): ...``
        """
        parts = _up_to(self.spec, v, "v", "the inputs", name)
        K: int | None = None
        for i, (part, x) in enumerate(zip(parts, leaves, strict=True)):

            def where(i: int = i) -> str:
                return _path(self.build(leaves), i, "v")

            _check(part, where, name)
            for what, its, wanted in (
                ("dtype", part.dtype, x.dtype),
                ("device", part.device, x.device),
            ):
                if its != wanted:
                    raise TypeError(
                        f"hesse.{name}: {where()} has {what} {its}, the input {wanted}: "
                        "convert one of them with .to()"
                    )
            batched = part.ndim == x.ndim + 1
            if part.shape[int(batched) :] != x.shape:
                raise ValueError(
                    f"hesse.{name}: {where()} has shape {tuple(part.shape)}, the input "
                    f"{tuple(x.shape)}: a direction has the shape of the input, K of them one "
                    "axis of length K in front"
                )
            count = part.shape[0] if batched else None
            if i and count != K:
                raise ValueError(
                    f"hesse.{name}: {where()} holds {_directions(count)}, the leaf before it "
                    f"{_directions(K)}: all leaves need the same leading axis, or none"
                )
            K = count
        return parts, K


def take(inputs: Any, name: str, root: str = "inputs") -> tuple[list[Tensor], Structure]:
    """Take the inputs of a call apart.

    Args:
        inputs: a Tensor, a tuple of arguments, or any other tree as the one argument. The leaves
            are strided tensors of real floating-point dtypes.
        name: of the public call, for its errors.
        root: what the user calls the tree.

    Returns:
        The leaves in order, and what puts them together again.

    Raises:
        TypeError: ``hesse.hvp: inputs['layer'][0] is of type int, not a Tensor: ...`` and the like.
        ValueError: ``hesse.hvp: inputs holds no tensor: ...``
    """
    leaves, spec = pytree.tree_flatten(inputs)
    if not leaves:
        raise ValueError(f"hesse.{name}: {root} holds no tensor: there must be at least one")
    for i, leaf in enumerate(leaves):
        _check(leaf, lambda i=i: _path(inputs, i, root), name)  # type: ignore[misc]
    return leaves, Structure(spec, type(inputs) is tuple)


def flatten(tree: Any) -> Tensor:
    """Write the leaves of a tree one after another into one vector.

    Args:
        tree: a Tensor, or a tree of them (tuple, list, dict, named tuple, registered class), of one
            real floating-point dtype and on one device.

    Returns:
        ``[N]``, a differentiable copy; the order is that of the blocks of every Hessian here.

    Raises:
        TypeError: ``hesse.flatten: tree['b'] has dtype torch.float32, tree['a'] torch.float64:
            ...``, and the same of devices; ``hesse.flatten: tree[0] is of type int, not a Tensor:
            ...``
        ValueError: ``hesse.flatten: tree holds no tensor: ...``

    Example:
        >>> import hesse, torch
        >>> tree = {"w": torch.zeros(2, 2), "b": torch.ones(1)}
        >>> assert hesse.flatten(tree).tolist() == [0, 0, 0, 0, 1]
        >>> assert hesse.unflatten(hesse.flatten(tree), tree)["w"].equal(tree["w"])

    Source:
        torch.nn.utils.parameters_to_vector, for trees.
    """
    leaves, _ = take(tree, "flatten", "tree")
    _check_alike(leaves, lambda i: _path(tree, i, "tree"), "flatten")
    return torch.cat([x.reshape(-1) for x in leaves])


def unflatten(vector: Tensor, like: Any) -> Any:
    """Cut a vector into the leaves of a tree, the inverse of :func:`hesse.flatten`.

    Args:
        vector: ``[..., N]``, any dtype and device, which the leaves keep.
        like: the tree whose structure and shapes ``S`` are wanted.

    Returns:
        A tree like ``like`` of leaves ``[..., *S]``, views of the vector where strides allow.

    Raises:
        TypeError: ``hesse.unflatten: vector is of type list, not a Tensor: ...``, and the same of
            the leaves of ``like``.
        ValueError: ``hesse.unflatten: the last axis of vector has length 4, the leaves of like
            hold 5 elements together: ...``

    Example:
        >>> import hesse, torch
        >>> like = {"w": torch.ones(2), "b": torch.ones([])}
        >>> steps = hesse.unflatten(torch.arange(6.0).view(2, 3), like)
        >>> assert steps["w"].tolist() == [[0, 1], [3, 4]] and steps["b"].tolist() == [2, 5]

    Source:
        torch.nn.utils.vector_to_parameters, for trees.
    """
    leaves, structure = take(like, "unflatten", "like")
    _check_tensor(vector, lambda: "vector", "unflatten")
    sizes = [x.numel() for x in leaves]
    _check_length(vector, 1, sum(sizes), "vector", "unflatten")
    return structure.build(
        [
            part.reshape(vector.shape[:-1] + x.shape)
            for part, x in zip(torch.split(vector, sizes, -1), leaves, strict=True)
        ]
    )


def flatten_blocks(blocks: Any, like: Any) -> Tensor:
    """Write a Hessian in blocks as one matrix.

    Args:
        blocks: a tree of trees: at leaf i of the outer and j of the inner ``[..., *S_i, *S_j]``, as
            the Hessian of a function of ``like`` is. One dtype, one device.
        like: the inputs, with leaves of shapes ``S_i``.

    Returns:
        ``[..., N, N]``, rows and columns in the order of ``hesse.flatten(like)``.

    Raises:
        TypeError: ``hesse.flatten_blocks: block 1 has dtype ...`` and the like.
        ValueError: ``hesse.flatten_blocks: blocks must be a tree like like: ...``,
            ``hesse.flatten_blocks: block (0, 1) has shape (2, 2), which does not end in (2, 3):
            ...``

    Example:
        >>> import hesse, torch
        >>> inputs = (torch.ones(2), torch.ones(1))
        >>> H = hesse.hessian(lambda x, y: (x**2).sum() * y.sum(), inputs)
        >>> assert hesse.flatten_blocks(H, inputs).tolist() == [[2, 0, 2], [0, 2, 2], [2, 2, 0]]

    Source:
        The block matrix of second derivatives.
    """
    name = "flatten_blocks"
    leaves, structure = take(like, name, "like")
    rows = [
        _up_to(structure.spec, row, f"row {i} of blocks", "like", name)
        for i, row in enumerate(_up_to(structure.spec, blocks, "blocks", "like", name))
    ]
    n = len(leaves)
    flat = [block for row in rows for block in row]

    def where(k: int) -> str:
        return f"block ({k // n}, {k % n})"

    lead: torch.Size | None = None
    for k, block in enumerate(flat):
        _check_tensor(block, lambda k=k: where(k), name)  # type: ignore[misc]
        tail = leaves[k // n].shape + leaves[k % n].shape
        cut = block.ndim - len(tail)
        if cut < 0 or block.shape[cut:] != tail:
            raise ValueError(
                f"hesse.{name}: {where(k)} has shape {tuple(block.shape)}, which does not end in "
                f"{tuple(tail)}: it must have the shapes of leaves {k // n} and {k % n} of like"
            )
        if lead is not None and block.shape[:cut] != lead:
            raise ValueError(
                f"hesse.{name}: {where(k)} has leading axes {tuple(block.shape[:cut])}, "
                f"{where(0)} {tuple(lead)}: they must be the same"
            )
        lead = block.shape[:cut]
    _check_alike(flat, where, name)
    assert lead is not None
    sizes = [x.numel() for x in leaves]
    return torch.cat(
        [
            torch.cat([b.reshape(*lead, s, t) for b, t in zip(row, sizes, strict=True)], -1)
            for row, s in zip(rows, sizes, strict=True)
        ],
        -2,
    )


def unflatten_blocks(matrix: Tensor, like: Any) -> Any:
    """Cut a matrix into blocks, the inverse of :func:`hesse.flatten_blocks`.

    Args:
        matrix: ``[..., N, N]``.
        like: the inputs, with leaves of shapes ``S_i``.

    Returns:
        A tree of trees like ``like``: at leaf i of the outer and j of the inner
        ``[..., *S_i, *S_j]``, views of the matrix where strides allow.

    Raises:
        TypeError: ``hesse.unflatten_blocks: matrix is of type list, not a Tensor: ...``
        ValueError: ``hesse.unflatten_blocks: the last 2 axes of matrix have lengths (2, 3), the
            leaves of like hold 3 elements together: ...``

    Example:
        >>> import hesse, torch
        >>> like = {"w": torch.ones(2), "b": torch.ones([])}
        >>> H = hesse.unflatten_blocks(torch.arange(9.0).view(3, 3), like)
        >>> assert H["w"]["b"].tolist() == [2, 5] and H["b"]["w"].tolist() == [6, 7]

    Source:
        The block matrix of second derivatives.
    """
    leaves, structure = take(like, "unflatten_blocks", "like")
    _check_tensor(matrix, lambda: "matrix", "unflatten_blocks")
    sizes = [x.numel() for x in leaves]
    _check_length(matrix, 2, sum(sizes), "matrix", "unflatten_blocks")
    lead = matrix.shape[:-2]
    return structure.blocks(
        [
            [
                block.reshape(lead + x.shape + z.shape)
                for block, z in zip(torch.split(row, sizes, -1), leaves, strict=True)
            ]
            for row, x in zip(torch.split(matrix, sizes, -2), leaves, strict=True)
        ]
    )


def _path(tree: Any, i: int, root: str) -> str:
    """How the user reaches leaf ``i`` of ``tree``."""
    try:
        keys = pytree.tree_flatten_with_path(tree)[0][i][0]
    except ValueError:  # of a class that was registered without keys
        return f"leaf {i} of {root}"
    return root + pytree.keystr(keys)


def _up_to(spec: pytree.TreeSpec, tree: Any, root: str, model: str, name: str) -> list[Any]:
    try:
        return spec.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(f"hesse.{name}: {root} must be a tree like {model}: {error}") from None


def _directions(K: int | None) -> str:
    return "one direction without a leading axis" if K is None else f"{K} directions"


def _check_tensor(x: Any, where: Callable[[], str], name: str, advice: str = "pass one") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"hesse.{name}: {where()} is of type {type(x).__name__}, not a Tensor: {advice}"
        )


def _advice(leaf: Any) -> str:
    """What to do about a leaf that is not a tensor."""
    if isinstance(leaf, torch.nn.Module):
        return "hesse.functional(module, loss) makes a function of it, and a tree of its parameters"
    if isinstance(leaf, Iterator):
        return "make a tuple or a list of it"
    if hasattr(leaf, "__array__"):
        return "torch.as_tensor makes one of it"
    if dataclasses.is_dataclass(leaf):
        return f"torch.utils._pytree.register_dataclass({type(leaf).__name__}) makes it a tree"
    return "let func close over what is not differentiated, and make tensors of the rest"


def _check(leaf: Any, where: Callable[[], str], name: str) -> None:
    """Raise unless ``leaf`` is a strided tensor of a real floating-point dtype."""
    _check_tensor(leaf, where, name, _advice(leaf))
    if leaf.is_complex():
        fault = f"is complex ({leaf.dtype}): give its real and imaginary parts, torch.view_as_real"
    elif not leaf.is_floating_point():
        fault = (
            f"has dtype {leaf.dtype}, which has no derivatives: convert it with .to(), or let "
            "func close over it"
        )
    elif leaf.layout is not torch.strided:
        fault = f"has layout {leaf.layout}: give its dense form, .to_dense(), or its .values()"
    else:
        return
    raise TypeError(f"hesse.{name}: {where()} {fault}")


def _check_alike(leaves: Sequence[Tensor], where: Callable[[int], str], name: str) -> None:
    """Raise unless all leaves have one dtype and one device."""
    first = leaves[0]
    for i, x in enumerate(leaves):
        for what, its, wanted in (
            ("dtype", x.dtype, first.dtype),
            ("device", x.device, first.device),
        ):
            if its != wanted:
                raise TypeError(
                    f"hesse.{name}: {where(i)} has {what} {its}, {where(0)} {wanted}: "
                    "convert them to one with .to()"
                )


def _check_length(x: Tensor, axes: int, N: int, root: str, name: str) -> None:
    """Raise unless each of the last ``axes`` axes has length N."""
    lengths = tuple(x.shape[-axes:])
    if lengths == (N,) * axes:
        return
    if x.ndim < axes:
        fault = f"{root} has shape {tuple(x.shape)}"
    elif axes == 1:
        fault = f"the last axis of {root} has length {lengths[0]}"
    else:
        fault = f"the last {axes} axes of {root} have lengths {lengths}"
    raise ValueError(
        f"hesse.{name}: {fault}, the leaves of like hold {N} elements together: they must agree"
    )
