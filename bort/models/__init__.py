"""The model family: one encoder parametrized by the 4-tuple, and heads for it."""
from bort.models.bert import Bert, initialize
from bort.models.classifier import HEADS, Classifier

__all__ = ["Bert", "Classifier", "HEADS", "initialize"]
