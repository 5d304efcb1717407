"""The compiled engine. Axis letters: K seeds; ``in`` and ``out`` are value shapes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

torch_version: str

class Unsupported(RuntimeError): ...

class Linearization:
    def gradient(self) -> list[Tensor | None]: ...
    def hessian(self, chunk_size: int | None, dtype_of_row: bool) -> list[list[Tensor]]: ...
    def push(self, dxs: Sequence[Tensor | None]) -> list[Tensor]: ...
    def pull(self, dgys: Sequence[Tensor | None]) -> list[Tensor]: ...
    def hvp(self, dxs: Sequence[Tensor | None]) -> list[Tensor]: ...
    def report(self) -> dict[str, Any]: ...

def linearize(
    outputs: list[Tensor],
    inputs: list[Tensor],
    gys: list[Tensor] | None,
    create_graph: bool,
) -> Linearization: ...
def rule_names() -> list[str]: ...

class UserRule:
    def remove(self) -> None: ...

def add_user_rule(
    name: str,
    push: Callable[..., Any],
    pull: Callable[..., Any],
    curve: Callable[..., Any] | None,
    override: bool,
) -> UserRule: ...
