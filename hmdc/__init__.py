"""Heterogeneous model dataset condensation: condense an image set with several different networks at once."""

__version__ = "0.1.0"

from .data import ImageData, load_dataset
from .evaluation import evaluate
from .models import Member, create_model, tap
from .recipes import recipe
from .synthetic import SyntheticSet
from .trainer import Recipe, condense

__all__ = [
    "ImageData", "Member", "Recipe", "SyntheticSet", "condense", "create_model", "evaluate", "load_dataset", "recipe", "tap",
]
