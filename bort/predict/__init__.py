"""Predictions with a trained model: classification, regression, masked tokens."""
