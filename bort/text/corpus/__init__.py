"""Corpora as streams of documents, cleaned and cut into sentences."""
