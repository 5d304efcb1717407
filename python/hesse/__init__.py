"""Exact Hessians of scalar PyTorch functions, from the graph that autograd has recorded.

``hesse.hessian`` takes the place of ``torch.autograd.functional.hessian``.
"""

from . import _match

_match.load()

from . import optim, testing  # noqa: E402  (the check above comes first)
from .api import explain, hessian  # noqa: E402
from .policy import FallbackError, FallbackWarning, fallback  # noqa: E402
from .report import Report  # noqa: E402
from .rules import Registration, register_rule  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "FallbackError",
    "FallbackWarning",
    "Registration",
    "Report",
    "explain",
    "fallback",
    "hessian",
    "optim",
    "register_rule",
    "testing",
]
