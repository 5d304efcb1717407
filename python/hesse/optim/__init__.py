"""Second-order optimisers in the manner of ``torch.optim``, from exact Hessians and products."""

from .newton import Newton
from .newton_cg import NewtonCG

__all__ = ["Newton", "NewtonCG"]
