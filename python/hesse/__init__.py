"""Exact Hessians of scalar PyTorch functions, from the graph that autograd has recorded.

``hesse.hessian`` takes the place of ``torch.autograd.functional.hessian``; ``hesse.linearize``
answers every other question about the Hessian at a point.
"""

from . import _match

_match.load()

from . import func, optim, testing  # noqa: E402  (the check above comes first)
from .api import explain, hessian  # noqa: E402
from .batch import SeparabilityError, batch_hessian  # noqa: E402
from .compiled import Compiled, compile  # noqa: E402, A004
from .modules import functional, module_hessian  # noqa: E402
from .operator import HessianOperator, linearize, value_grad_hessian  # noqa: E402
from .patch import patched  # noqa: E402
from .policy import FallbackError, FallbackWarning, fallback  # noqa: E402
from .products import hvp, vhp  # noqa: E402
from .report import Report  # noqa: E402
from .rules import Registration, register_rule  # noqa: E402
from .trees import flatten, flatten_blocks, unflatten, unflatten_blocks  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "Compiled",
    "FallbackError",
    "FallbackWarning",
    "HessianOperator",
    "Registration",
    "Report",
    "SeparabilityError",
    "batch_hessian",
    "compile",
    "explain",
    "fallback",
    "flatten",
    "flatten_blocks",
    "func",
    "functional",
    "hessian",
    "hvp",
    "linearize",
    "module_hessian",
    "optim",
    "patched",
    "register_rule",
    "testing",
    "unflatten",
    "unflatten_blocks",
    "value_grad_hessian",
    "vhp",
]
