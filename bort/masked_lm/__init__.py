"""What search and pre-training share: masks, batches, losses over the vocabulary,
the teacher's forward pass."""
