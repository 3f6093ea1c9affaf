"""Text for the rest of the project: tokenizers, the embedded corpus, corpora to shards, masking.
No MXNet anywhere."""
