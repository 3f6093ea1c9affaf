"""Fine-tuning on a task: the loop, one experiment from files to submissions, scoring, hyper-parameters."""
