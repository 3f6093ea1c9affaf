"""Fine-tuning on a task: the loop, a run from its files to its submissions, scoring, hyper-parameters."""
