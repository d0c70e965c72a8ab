"""Heterogeneous model dataset condensation: condense an image set with several different networks at once."""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data import ImageData, load_dataset
    from .evaluation import evaluate, train
    from .models import Member, create_model, tap
    from .recipes import recipe
    from .settings import Recipe
    from .synthetic import SyntheticSet
    from .trainer import condense

# Where each name lives: torch and timm are loaded when one is used, so that `hmdc --help` answers at once.
_HOMES = {
    "ImageData": "data", "Member": "models", "Recipe": "settings", "SyntheticSet": "synthetic", "condense": "trainer",
    "create_model": "models", "evaluate": "evaluation", "load_dataset": "data", "recipe": "recipes", "tap": "models",
    "train": "evaluation",
}
__all__ = [
    "ImageData", "Member", "Recipe", "SyntheticSet", "condense", "create_model", "evaluate", "load_dataset", "recipe", "tap",
    "train",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]
