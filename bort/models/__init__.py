"""The model family: one encoder parametrized by the 4-tuple, and heads for it."""
from bort.models.bert import Bert
from bort.models.classifier import HEADS, Classifier
from bort.models.initial_values import initialize

__all__ = ["Bert", "Classifier", "HEADS", "initialize"]
