"""Pre-training (section 4): the loop, its inputs, and a cache of the teacher's answers."""
