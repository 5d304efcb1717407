"""What a Hessian cannot be had without: elements that must be read, and matrix products.

The products are those of the closed form, of symmetric ones one triangle. Elementwise work is left
out: it is little beside what must be moved.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """`count` products `[rows, inner] [inner, columns]`.

    Attributes:
        rows: of the left factor.
        inner: the axis that is summed.
        columns: of the right factor.
        count: how many such products.
        symmetric: the result is, so that one triangle is enough.
    """

    rows: int
    inner: int
    columns: int
    count: int = 1
    symmetric: bool = False

    @property
    def whole(self) -> int:
        """FLOPs of all elements; a multiplication and an addition are two."""
        return 2 * self.count * self.rows * self.inner * self.columns

    @property
    def flops(self) -> int:
        """FLOPs of the elements that differ: a triangle with its diagonal, or all."""
        return self.whole * (self.rows + 1) // (2 * self.rows) if self.symmetric else self.whole


@dataclass(frozen=True)
class Work:
    """Of one case.

    Attributes:
        data: elements that are read beside the inputs, such as a data set.
        products: the matrix products.
    """

    data: int = 0
    products: tuple[Product, ...] = ()

    @property
    def flops(self) -> int:
        """FLOPs that must be done."""
        return sum(p.flops for p in self.products)

    def bytes(self, numel: int, element: int) -> int:
        """Bytes that must move: `numel` inputs and the data once in, the Hessian once out."""
        return element * (numel + self.data + numel * numel)
