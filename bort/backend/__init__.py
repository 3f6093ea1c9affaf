"""The only modules that import MXNet and Horovod: the door to MXNet,
the ranks of a run, NumPy views of arrays."""
