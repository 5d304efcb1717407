"""One linearization, many questions: the Hessian at a fixed point as a linear operator.

    func, inputs -> record once -> engine -> value, gradient, H v, H V, diagonal, rows, blocks, H

Inputs are any tree of tensors (:mod:`hesse.trees`). What is flat counts the elements of all leaves
in order, N together; what is structured is a tree like the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import record, stock, trees
from .report import Report

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


def linearize(
    func: Callable[..., Tensor], inputs: Any, *, create_graph: bool = False
) -> HessianOperator:
    """Run ``func`` once and keep what every later question about its Hessian needs.

    Args:
        func: returns one Tensor with one element. A tuple of inputs is its arguments, any other
            tree its one argument.
        inputs: a Tensor, or a tree of them (tuple, list, dict, ...), of real floating-point dtypes.
        create_graph: whether the answers can be differentiated again, by inputs that require grad
            and by directions.

    Returns:
        A :class:`HessianOperator`. It holds the recorded graph until it goes out of scope, and
        reads the inputs and what ``func`` closes over where they lie: change a copy.

    Raises:
        TypeError: ``hesse.linearize: inputs['layer'][0] is of type int, not a Tensor: ...`` and the
            like; ``The outputs of the user-provided function given to linearize must be either a
            Tensor or a tuple of Tensors ...``
        ValueError: ``hesse.linearize: inputs holds no tensor: ...``
        RuntimeError: ``The Tensor returned by the function given to linearize should contain a
            single element``; ``hesse.linearize: it is called inside a torch.func transform ...``
        FallbackError: the engine cannot take the graph and :func:`hesse.fallback` is ``"error"``.

    Example:
        >>> import hesse, torch
        >>> op = hesse.linearize(lambda p: (p["w"] ** 3).sum() * p["b"], {
        ...     "w": torch.tensor([1.0, 2.0]), "b": torch.tensor(2.0)})
        >>> assert op.value == 18 and op.gradient["w"].tolist() == [6, 24]
        >>> assert (op @ torch.tensor([1.0, 0.0, 0.0])).tolist() == [12, 0, 3]
        >>> assert op.diagonal()["w"].tolist() == [12, 24] and op.trace() == 36

    Source:
        B. Christianson, Automatic Hessians by reverse accumulation, IMA J. Numer. Anal. 12, 1992.
    """
    leaves, structure = trees.take(inputs, "linearize")
    recorded = _record(func, leaves, structure, create_graph, "linearize")
    return HessianOperator(recorded, structure)


def value_grad_hessian(func: Callable[..., Tensor], inputs: Any) -> tuple[Tensor, Any, Any]:
    """Compute the value, the gradient and the Hessian from one run of ``func``.

    Args:
        func: as for :func:`hesse.linearize`.
        inputs: as for :func:`hesse.linearize`.

    Returns:
        ``(value, gradient, H)``: the gradient is a tree like the inputs; H a tree of trees, at
        leaf i of the outer and j of the inner a block of shape ``S_i + S_j``. For one Tensor of
        shape S: a Tensor of shape S and one of shape S + S.

    Raises:
        TypeError: as :func:`hesse.linearize`, and likewise its other errors.

    Example:
        >>> import hesse, torch
        >>> y, g, H = hesse.value_grad_hessian(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]))
        >>> assert y == 9 and g.tolist() == [3, 12] and H.tolist() == [[6, 0], [0, 12]]

    Source:
        As :func:`hesse.linearize`.
    """
    leaves, structure = trees.take(inputs, "value_grad_hessian")
    op = HessianOperator(_record(func, leaves, structure, False, "value_grad_hessian"), structure)
    return op.value, op.gradient, op.blocks()


def _record(
    func: Callable[..., Tensor],
    leaves: list[Tensor],
    structure: trees.Structure,
    create_graph: bool,
    name: str,
) -> record.Recorded:
    """Run ``func`` at these leaves, for questions that outlive the call ``name``."""
    given = tuple(leaves)
    if (around := record.no_graph()) is not None:
        raise RuntimeError(
            f"hesse.{name}: {around}, where no graph can be kept: call it outside, or take "
            "hesse.func.hessian"
        )
    reason = None if record.plain(given) else record.elsewhere(given, True)[1]
    func = record.uncompiled(func)
    _, inner, y = record.record(
        lambda *xs: structure.call(func, xs), given, create_graph, name=name
    )
    return record.Recorded(y, inner, create_graph, name, keep=True, reason=reason)


class HessianOperator:
    """The Hessian H of a scalar function at a point, as a linear operator.

    Made by :func:`hesse.linearize`. No method runs the function again, and none forms H but those
    that return it. A direction ``v`` may be flat, ``[N]`` or ``[N, K]`` for K at once, or a tree
    like the inputs, whose leaves may have one more axis of length K in front (not for a single
    vector: K of its directions are the columns of a matrix).

    Attributes:
        value: of the function, with the shape that it returned.
        shape: ``(N, N)``, the elements of all inputs together.
    """

    def __init__(self, recorded: record.Recorded, structure: trees.Structure) -> None:
        """Made by :func:`hesse.linearize`."""
        self.value = recorded.y if recorded.create_graph else recorded.y.detach()
        self._recorded = recorded
        self._ask = recorded.ask
        self._leaves = recorded.inner
        self._structure = structure
        self._sizes = [x.numel() for x in self._leaves]
        self.shape = torch.Size((sum(self._sizes),) * 2)
        self._alone = structure.spec.is_leaf()

    # ---- what it is --------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Of all inputs; raises ``TypeError`` where they have several."""
        dtype: torch.dtype = self._shared("dtype", [x.dtype for x in self._leaves])
        return dtype

    @property
    def device(self) -> torch.device:
        """Of all inputs; raises ``TypeError`` where they have several."""
        device: torch.device = self._shared("device", [x.device for x in self._leaves])
        return device

    @property
    def T(self) -> HessianOperator:
        """The operator itself: H is symmetric.

        Raises:
            RuntimeError: ``hesse.linearize: H may not be symmetric here: ...``, where a custom
                Function has a backward that need not be the derivative of its forward, and where
                plain autograd answers, which does not tell.
        """
        if not self._recorded.engine.symmetric:
            raise RuntimeError(
                "hesse.linearize: H may not be symmetric here: func calls a custom autograd "
                "Function, whose backward need not be the derivative of its forward, or plain "
                "autograd answers for it. Take op.dense().T"
            )
        return self

    def adjoint(self) -> HessianOperator:
        """``T`` under the name by which curvlinops asks for it."""
        return self.T

    @property
    def gradient(self) -> Any:
        """Of the function, a tree like the inputs; from the same sweep as the linearization."""
        grads = self._ask(lambda engine: engine.gradient())
        return self._structure.build(
            [
                torch.zeros_like(x) if g is None else g.clone()  # it may be memory of func's
                for g, x in zip(grads, self._leaves, strict=True)
            ]
        )

    def report(self) -> Report:
        """Return the counts of the last question, as :func:`hesse.explain` gives them."""
        return Report.of(self._recorded.engine.report(), 0)

    def __repr__(self) -> str:
        """Shape, dtypes, devices."""
        dtypes = ", ".join(sorted({str(x.dtype) for x in self._leaves}))
        devices = ", ".join(sorted({str(x.device) for x in self._leaves}))
        return f"HessianOperator(shape={tuple(self.shape)}, dtype={dtypes}, device={devices})"

    # ---- products ------------------------------------------------------------------------------

    def __matmul__(self, v: Any) -> Any:
        """Multiply H with directions.

        Args:
            v: ``[N]``, ``[N, K]``, or a tree like the inputs with leaves ``S`` or ``[K, *S]``; of
                the dtypes and devices of the inputs.

        Returns:
            ``H v``, laid out like ``v``.

        Raises:
            ValueError: ``hesse.linearize: v has shape ...``
            TypeError: ``hesse.linearize: v has dtype ...``

        Example:
            >>> import hesse, torch
            >>> op = hesse.linearize(lambda x: (x**3).sum(), torch.ones(2))
            >>> assert (op @ torch.eye(2)).tolist() == [[6, 0], [0, 6]]
        """
        rows, layout = self._rows(v)
        return layout(self._products(rows))

    def __rmatmul__(self, v: Any) -> Any:
        """Multiply directions with H: ``v' H`` for ``[N]``, ``V' H`` for ``[K, N]``."""
        if not isinstance(v, Tensor):
            return NotImplemented
        rows, layout = self._rows(v if v.ndim == 1 else v.T)
        product = layout(self._ask(lambda engine: engine.hvp(rows)))  # v' H, symmetric or not
        return product if v.ndim == 1 else product.T

    def matvec(self, v: Tensor) -> Tensor:
        """``H v`` of one flat direction: ``[N]`` to ``[N]``."""
        return self._flat_product(v, 1)

    def matmat(self, V: Tensor) -> Tensor:
        """``H V`` of K flat directions at once: ``[N, K]`` to ``[N, K]``."""
        return self._flat_product(V, 2)

    def quadratic(self, v: Any) -> Tensor:
        """Compute ``v' H v``, at about half the cost of a product.

        Args:
            v: as for ``@``.

        Returns:
            A 0-d tensor; for K directions ``V' H V``, ``[K, K]``.

        Raises:
            ValueError: as ``@``; and ``TypeError``.

        Example:
            >>> import hesse, torch
            >>> op = hesse.linearize(lambda x: (x**3).sum(), torch.ones(2))
            >>> assert op.quadratic(torch.tensor([1.0, 2.0])) == 30
        """
        rows, layout = self._rows(v)
        form = self._ask(lambda engine: engine.quadratic(rows))
        return form if layout.several else form.reshape(())

    def to_scipy(self) -> LinearOperator:
        """Return a ``scipy.sparse.linalg.LinearOperator`` of the same shape, on NumPy arrays.

        Returns:
            For ``eigsh``, ``cg``, ``scipy.optimize``: its products are moved to the device of the
            inputs and back.

        Raises:
            ImportError: where SciPy is not installed.
            TypeError: where the inputs have several dtypes or devices, or one that NumPy lacks.

        Example:
            >>> import hesse, torch
            >>> from scipy.sparse.linalg import eigsh
            >>> op = hesse.linearize(lambda x: (x**4).sum(), torch.arange(1.0, 9.0))
            >>> top = eigsh(op.to_scipy(), k=1, return_eigenvectors=False)
            >>> assert abs(top[0] - 12 * 64) < 1e-2
        """
        from scipy.sparse.linalg import LinearOperator

        dtype, device = self.dtype, self.device
        numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype

        def apply(v: Any) -> Any:
            column = torch.as_tensor(v).to(device, dtype)
            return (
                (self @ (column if column.ndim == 2 else column.reshape(-1))).detach().cpu().numpy()
            )

        return LinearOperator(
            tuple(self.shape),
            matvec=apply,
            matmat=apply,
            rmatvec=apply if self._recorded.engine.symmetric else None,
            dtype=numpy_dtype,
        )

    # ---- H and its parts -----------------------------------------------------------------------

    def dense(self) -> Tensor:
        """Return H as one matrix, ``[N, N]``; the inputs share a dtype and a device."""
        N = self.shape[0]
        if len(self._leaves) == 1:
            return self._blocks()[0][0].view(N, N)
        self._check_flat()
        blocks = self._blocks()
        return torch.cat(
            [
                torch.cat([b.reshape(n, m) for b, m in zip(row, self._sizes, strict=True)], 1)
                for row, n in zip(blocks, self._sizes, strict=True)
            ]
        )

    def blocks(self) -> Any:
        """Return H as a tree of trees: at leaves i and j a block of shape ``S_i + S_j``."""
        return self._structure.blocks(self._blocks())

    def block(self, i: int | str, j: int | str) -> Tensor:
        """Compute the block of two inputs, and no more than that takes.

        Where H is symmetric, the elements of the smaller of the two are the directions.

        Args:
            i: of the leaf whose elements are the rows: its place in order, or its key where the
                inputs are a dict of tensors.
            j: likewise of the columns.

        Returns:
            ``S_i + S_j``, with the dtype of leaf j.

        Raises:
            IndexError: ``hesse.linearize: there is no input 3: ...``
        """
        row, column = self._place(i), self._place(j)
        x, z = self._leaves[row], self._leaves[column]
        block: Tensor
        if self._recorded.engine.symmetric and z.numel() < x.numel() and z.dtype == x.dtype:
            # Rows are the seeds, and those of the transpose are fewer.
            block = self._ask(lambda engine: engine.block(column, row))
            return block.reshape(z.numel(), x.numel()).T.reshape(x.shape + z.shape).contiguous()
        block = self._ask(lambda engine: engine.block(row, column))
        return block

    def block_diagonal(self) -> Any:
        """Compute the block of each input with itself: a tree like the inputs, ``S + S`` each."""
        return self._structure.build([self.block(i, i) for i in range(len(self._leaves))])

    def rows(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Compute some rows of H, and no more than these.

        Args:
            index: a row, a slice, or a vector of rows in any order (negative ones count from the
                end; a list, Tensor or NumPy array), of the N elements of all inputs.

        Returns:
            ``[N]`` for one row, else ``[R, N]``.

        Raises:
            IndexError: ``hesse.linearize: row 7 is out of range for N = 5``
            TypeError: ``hesse.linearize: rows must be named by integers, got ...``

        Example:
            >>> import hesse, torch
            >>> op = hesse.linearize(lambda x: x[0] * x[1] * x[2], torch.tensor([1.0, 2.0, 3.0]))
            >>> assert op.rows([2, 0]).tolist() == [[2, 1, 0], [0, 3, 2]]
        """
        self._check_flat()
        chosen = self._index(index)
        parts = self._ask(lambda engine: engine.rows(chosen))
        R = len(chosen)
        flat = [p.reshape(R, n) for p, n in zip(parts, self._sizes, strict=True)]
        matrix = flat[0] if len(flat) == 1 else torch.cat(flat, 1)
        one = _is_integer(index.tolist() if isinstance(index, Tensor) else index)
        return matrix.squeeze(0) if one else matrix

    def diagonal(self) -> Any:
        """Compute the diagonal of H, exactly, without H.

        Where elements do not meet it costs about a gradient, of samples that do not meet about as
        many products as one has elements; else a forward sweep of all seeds, chunk by chunk.

        Returns:
            A tree like the inputs, of their shapes.
        """
        return self._structure.build(self._diagonal())

    def trace(self) -> Tensor:
        """Compute the sum of the diagonal: a 0-d tensor; the inputs share a device."""
        self._shared("device", [x.device for x in self._leaves])
        return torch.stack([d.sum() for d in self._diagonal()]).sum()

    def lower_triangle(self) -> Tensor:
        """Compute ``H[r, c]`` for ``c <= r``, row by row in one vector, on the device.

        Returns:
            ``[N (N + 1) / 2]``, in the order of ``torch.tril_indices(N, N)``, as interior-point
            solvers take it; H itself is not formed.
        """
        self._check_flat()
        return self._ask(lambda engine: engine.lower_triangle())

    # ---- layouts ---------------------------------------------------------------------------------

    def _blocks(self) -> stock.Blocks:
        return self._ask(lambda engine: engine.hessian(None, False))

    def _diagonal(self) -> list[Tensor]:
        return self._ask(lambda engine: engine.diagonal())

    def _products(self, rows: list[Tensor]) -> list[Tensor]:
        if self._recorded.engine.symmetric:
            return self._ask(lambda engine: engine.hvp(rows))
        recorded = self._recorded
        return stock.products("hvp", recorded.y, recorded.inner, rows, recorded.create_graph)

    def _flat_product(self, v: Tensor, axes: int) -> Tensor:
        if not isinstance(v, Tensor) or v.ndim != axes or v.shape[0] != self.shape[0]:
            wanted = "[N]" if axes == 1 else "[N, K]"
            raise ValueError(
                f"hesse.linearize: v must be a Tensor {wanted} with N = {self.shape[0]}, got "
                f"{tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}"
            )
        rows, layout = self._flat(v)
        product: Tensor = layout(self._products(rows))
        return product

    def _rows(self, v: Any) -> tuple[list[Tensor], _Layout]:
        """The directions as rows ``[K, *S]`` per leaf, and how to lay out what comes back."""
        if isinstance(v, Tensor):
            x = self._leaves[0]
            if self._alone and v.shape == x.shape:
                self._check_like(v, x.dtype, x.device)
                return [v.unsqueeze(0)], _Layout(lambda rows: rows[0].squeeze(0), False)
            if v.ndim in (1, 2) and v.shape[0] == self.shape[0]:
                return self._flat(v)
            # [K, N] would be rows, and columns where K happens to be N.
            if not self._alone or v.shape[1:] != x.shape or x.ndim == 1:
                raise ValueError(
                    f"hesse.linearize: v has shape {tuple(v.shape)}: it must be [N] or [N, K] with "
                    f"N = {self.shape[0]}, or like the inputs"
                )
        parts, K = self._structure.directions(v, self._leaves, "linearize")
        if K is not None:
            return parts, _Layout(self._structure.build, True)
        return [p.unsqueeze(0) for p in parts], _Layout(
            lambda rows: self._structure.build([r.squeeze(0) for r in rows]), False
        )

    def _flat(self, v: Tensor) -> tuple[list[Tensor], _Layout]:
        self._check_like(v, self.dtype, self.device)
        several = v.ndim == 2
        flat = v.T.contiguous() if several else v.unsqueeze(0)  # a direction in one piece
        K = flat.shape[0]
        if len(self._leaves) == 1:
            rows = [flat.reshape(K, *self._leaves[0].shape)]
        else:
            parts = torch.split(flat, self._sizes, 1)
            rows = [p.reshape(K, *x.shape) for p, x in zip(parts, self._leaves, strict=True)]

        def layout(products: list[Tensor]) -> Tensor:
            parts = [p.reshape(K, n) for p, n in zip(products, self._sizes, strict=True)]
            together = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            return together.T if several else together.squeeze(0)

        return rows, _Layout(layout, several)

    def _index(self, index: Any) -> list[int]:
        N = self.shape[0]
        if isinstance(index, slice):
            return list(range(*index.indices(N)))
        if isinstance(index, Tensor):
            index = index.tolist()
        chosen = []
        for k in index if isinstance(index, Iterable) else [index]:
            if not _is_integer(k):
                raise TypeError(f"hesse.linearize: rows must be named by integers, got {k!r}")
            k = int(k)
            if not -N <= k < N:
                raise IndexError(f"hesse.linearize: row {k} is out of range for N = {N}")
            chosen.append(k % N)
        return chosen

    def _place(self, key: int | str) -> int:
        n = len(self._leaves)
        names: list[Any] = list(range(n))
        if self._structure.spec.type is dict and self._structure.spec.num_children == n:
            names = list(self._structure.spec.context)
        if key in names:
            return names.index(key)
        if isinstance(key, int) and 0 <= key < n:
            return key
        raise IndexError(
            f"hesse.linearize: there is no input {key!r}: there are {', '.join(map(repr, names))}"
        )

    def _check_like(self, v: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        if v.dtype != dtype or v.device != device:
            raise TypeError(
                f"hesse.linearize: v has dtype {v.dtype} on {v.device}, the inputs {dtype} on "
                f"{device}: convert it with .to()"
            )

    def _check_flat(self) -> None:
        if len(self._leaves) > 1:
            _ = self.dtype, self.device

    @staticmethod
    def _shared(what: str, values: list[Any]) -> Any:
        for value in values[1:]:
            if value != values[0]:
                raise TypeError(
                    f"hesse.linearize: the inputs have several {what}s ({values[0]}, {value}), so "
                    "nothing about them is flat: use trees like the inputs, and blocks()"
                )
        return values[0]


def _is_integer(k: Any) -> bool:
    """Of Python or of NumPy."""
    return isinstance(k, Integral) and not isinstance(k, bool)


class _Layout:
    """Lays out the rows that come back as the directions were; ``several``: K of them."""

    def __init__(self, build: Callable[[list[Tensor]], Any], several: bool) -> None:
        self.build = build
        self.several = several

    def __call__(self, rows: list[Tensor]) -> Any:
        return self.build(rows)
