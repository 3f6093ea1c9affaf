"""On PYTHONPATH while Horovod is built: its build imports MXNet 1.9.1, which needs NumPy's old aliases."""
import numpy

for alias in (bool, int, float, complex, object, str):
    if alias.__name__ not in numpy.__dict__:
        setattr(numpy, alias.__name__, alias)
