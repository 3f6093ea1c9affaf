"""MXNet 1.9.1 with NumPy 1.24 and later: the aliases NumPy dropped (``np.bool`` and friends), given back.

``bort.backend.mxnet`` does it for this project. Other programs that import MXNet themselves, Horovod's
launcher ``horovodrun`` among them, need it too: ``python -m bort.numpy_aliases`` writes a ``.pth`` file into
the environment's site-packages, so that every ``import mxnet`` in it restores the aliases first. It costs
nothing in processes that do not import MXNet.
"""
from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any, Optional

PTH_NAME = "bort-numpy-aliases.pth"
_PTH_LINE = (
    "import importlib.util; importlib.util.find_spec('bort') and "
    "__import__('bort.numpy_aliases', fromlist=['x']).hook()\n"
)


def restore() -> None:
    """Give ``numpy`` the aliases of Python's types that it had before 1.24, where they are missing."""
    import numpy

    for alias in (bool, int, float, complex, object, str):
        if alias.__name__ not in numpy.__dict__:
            setattr(numpy, alias.__name__, alias)


class _BeforeMXNet:
    """A finder that finds nothing, but is asked before MXNet is imported."""

    @staticmethod
    def find_spec(name: str, path: Optional[Any] = None, target: Optional[Any] = None) -> None:
        if name == "mxnet":
            restore()


def hook() -> None:
    """From now on, restore the aliases whenever MXNet is imported in this process."""
    if _BeforeMXNet not in sys.meta_path:
        sys.meta_path.insert(0, _BeforeMXNet)


def install(folder: Optional[Path] = None) -> Path:
    """Write the ``.pth`` file into ``folder`` (site-packages of this environment by default); its path."""
    path = Path(folder or sysconfig.get_paths()["purelib"]) / PTH_NAME
    path.write_text(_PTH_LINE, encoding="utf-8")
    return path


if __name__ == "__main__":
    print(f"wrote {install()}: every `import mxnet` of this environment works with NumPy 1.24 and later")
