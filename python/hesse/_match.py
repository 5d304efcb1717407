"""Is the installed torch the one that the compiled module was built against?

Asked before the module is loaded: a C++ extension of another torch fails with an undefined symbol.
"""

from __future__ import annotations

REBUILD = "rebuild with `pip install --no-build-isolation --force-reinstall --no-deps .`"


def check(built: str, found: str) -> None:
    """Raise unless two torch versions agree in major and minor.

    Args:
        built: the version at build time, such as ``"2.13.0"``.
        found: ``torch.__version__``, such as ``"2.13.1+cpu"``.

    Raises:
        ImportError: ``hesse was built for torch X, found torch Y: rebuild with ...``
    """
    if built.split("+")[0].split(".")[:2] != found.split("+")[0].split(".")[:2]:
        raise ImportError(f"hesse was built for torch {built}, found torch {found}: {REBUILD}")


def load() -> None:
    """Check, then load the compiled module.

    Raises:
        ImportError: one line, when there is no build, or one for another torch.
    """
    import torch

    try:
        from ._build import TORCH_VERSION
    except ModuleNotFoundError:
        raise ImportError(f"hesse has no compiled module here: {REBUILD}") from None
    check(TORCH_VERSION, torch.__version__)
    try:
        from . import _C
    except ImportError as error:
        raise ImportError(f"hesse cannot load its compiled module ({error}): {REBUILD}") from None
    check(_C.torch_version, torch.__version__)
