"A production machine-learning system written, run and watched in notebooks."

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlsys_nb.doors.notebook_api import open_problem as open


def __getattr__(name: str) -> Any:  # `mlsys_nb.open` loads its room when it is first used (PEP 562)
    if name == "open":
        from mlsys_nb.doors.notebook_api import open_problem

        return open_problem
    raise AttributeError(f"module 'mlsys_nb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "open"]
