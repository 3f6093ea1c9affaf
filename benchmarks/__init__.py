"""One script per table of the paper; ``results/`` holds what they recorded, ``paper.py`` the paper's own
figures."""
