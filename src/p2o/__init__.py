"""P²O: joint policy and prompt optimization for training reasoning models, on TRL and GEPA."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2o.callbacks import P2OCallback
    from p2o.config import P2OConfig
    from p2o.trainer import P2OTrainer

# OpenMP reads it when torch is loaded. By default its threads spin while they wait, and take the cores that they are
# waiting for from other processes and from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["P2OCallback", "P2OConfig", "P2OTrainer", "__version__"]

_MODULES = {"P2OCallback": "p2o.callbacks", "P2OConfig": "p2o.config", "P2OTrainer": "p2o.trainer"}


def __getattr__(name: str) -> Any:
    # TRL takes seconds to import; pure parts of the package and `p2o --help` should not wait for it.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'p2o' has no attribute {name!r}")
