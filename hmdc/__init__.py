"""Heterogeneous model dataset condensation: condense an image set with several different networks at once."""

__version__ = "0.1.0"

from .data import ImageData, load_dataset
from .evaluation import evaluate, train
from .models import Member, create_model, tap
from .recipes import recipe
from .settings import Recipe
from .synthetic import SyntheticSet
from .trainer import condense

__all__ = [
    "ImageData", "Member", "Recipe", "SyntheticSet", "condense", "create_model", "evaluate", "load_dataset", "recipe", "tap",
    "train",
]
