"""BERTAdam, and plain gradient descent, over a network's parameters: global-norm clipping, exact state and a
guard against gradients that are not finite."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np

from bort.backend.mxnet import gluon, nd
from bort.backend.numpy_views import AdamFactors, HostViews, adam_update, square_sum, threads

PIECE = 1 << 20
"""Elements of a parameter that one thread updates at a time."""
MIN_FOR_THREADS = 1 << 24
"""Parameters from which on several threads pay: MXNet's own still spin meanwhile, and fewer fit the
processor's cache."""


def _decays(name: str) -> bool:
    return not name.endswith(("gamma", "beta", "bias"))


def set_to_zero(arrays: List[Any], views: HostViews) -> None:
    """In the arrays' own memory where it can be had, as MXNet takes several times as long."""
    nd.waitall()
    for array in arrays:
        view = views.flat(array)
        if view is None:
            array[:] = 0
        else:
            view.fill(0)


class BertAdam:
    """Adam as the release trains with: no bias correction, epsilon 1e-6, decoupled weight decay.

    For a gradient g clipped to global norm ``clip``: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
    w = w - lr (m / (sqrt(v) + eps) + decay w), where ``decay`` is 0 for biases and LayerNorm parameters.

    On a CPU it is computed by NumPy in the arrays' own memory, elsewhere by MXNet's ``adam_update`` with the
    decay applied before, which is the same function (``adamw_update`` runs on one thread). Float16 parameters
    are updated through float32 copies.

    Args:
        parameters: name to parameter, as ``_collect_params_with_prefix`` gives them; repeated
            ones count once.
        weight_decay: decay for weights and embeddings.
        clip: largest global norm of the gradient; 0 does not clip.
    """

    def __init__(
        self,
        parameters: Mapping[str, gluon.Parameter],
        weight_decay: float = 0.0,
        clip: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
    ) -> None:
        distinct: Dict[int, Tuple[str, gluon.Parameter]] = {}
        for name, parameter in sorted(parameters.items()):
            if parameter.grad_req != "null":
                distinct.setdefault(id(parameter), (name, parameter))
        self.parameters: List[Tuple[str, gluon.Parameter]] = sorted(
            distinct.values(), key=lambda item: item[0]
        )
        self.weight_decay, self.clip = weight_decay, clip
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self._threads = threads()
        self._elements = sum(parameter.data().size for _, parameter in self.parameters)
        self._pool: Optional[ThreadPoolExecutor] = None
        self._views = HostViews()
        self._mean = {name: nd.zeros(p.shape, ctx=p.data().context) for name, p in self.parameters}
        self._variance = {name: nd.zeros(p.shape, ctx=p.data().context) for name, p in self.parameters}
        self._master = {
            name: p.data().astype("float32") for name, p in self.parameters if np.dtype(p.dtype) != np.float32
        }

    def gradients(self) -> List[Any]:
        """The gradient arrays, in the order of :attr:`parameters` (the same on every rank)."""
        return [parameter.grad() for _, parameter in self.parameters]

    def zero_gradients(self) -> None:
        """Start accumulating anew."""
        set_to_zero(self.gradients(), self._views)

    def gradient_norm(self, scale: float = 1.0) -> float:
        """Euclidean norm of all gradients together, times ``scale``; not finite when any of them is not."""
        gradients = self.gradients()
        nd.waitall()
        rows = [self._views.flat(gradient) for gradient in gradients]
        known = [row for row in rows if row is not None]
        if len(known) == len(rows):
            pieces = [row[start : start + PIECE] for row in known for start in range(0, len(row), PIECE)]
            square = float(sum(self._in_threads(square_sum, pieces)))
        else:
            flat = [gradient.reshape(-1).astype("float32", copy=False) for gradient in gradients]
            square = float(nd.add_n(*[nd.dot(array, array) for array in flat]).asscalar())
        return scale * math.sqrt(square) if math.isfinite(square) else square

    def step(self, rate: float, scale: float = 1.0) -> float:
        """Update the parameters with their present gradients.

        Args:
            rate: learning rate of this step.
            scale: factor on the gradients (the inverse of a loss scale).

        Returns:
            The gradient's global norm before clipping. When it is not finite nothing is updated.
        """
        norm = self.gradient_norm(scale)
        if not math.isfinite(norm):
            return norm
        if self.clip and norm > self.clip:
            scale *= self.clip / norm
        on_host: List[Tuple[Any, ...]] = []
        for name, parameter in self.parameters:
            half = name in self._master
            weight = self._master[name] if half else parameter.data()
            decay = self.weight_decay if _decays(name) else 0.0
            gradient, moments = parameter.grad(), (self._mean[name], self._variance[name])
            views = [] if half else [self._views.flat(array) for array in (gradient, weight, *moments)]
            if views and all(view is not None for view in views):
                on_host.append((views[1], views[0], *views[2:], decay))
                continue
            arrays = (weight, gradient.astype("float32", copy=False), *moments)
            if decay:
                weight *= 1 - rate * decay
            nd.adam_update(
                *arrays,
                lr=rate,
                beta1=self.beta1,
                beta2=self.beta2,
                epsilon=self.epsilon,
                wd=0,
                rescale_grad=scale,
                out=weight,
            )
            if half:
                parameter.set_data(weight.astype(parameter.dtype))
        self._update_on_host(on_host, rate, scale)
        return norm

    def _update_on_host(self, arrays: List[Tuple[Any, ...]], rate: float, scale: float) -> None:
        """Update through NumPy, the elements dealt out over as many threads as MXNet has."""
        pieces = [
            [view[start : start + PIECE] for view in views] + [decay]
            for *views, decay in arrays
            for start in range(0, len(views[0]), PIECE)
        ]

        def update(piece: List[Any]) -> None:
            weight, gradient, mean, variance, decay = piece
            factors = AdamFactors(rate, scale, decay, self.beta1, self.beta2, self.epsilon)
            adam_update(weight, gradient, mean, variance, factors)

        for _ in self._in_threads(update, pieces):
            pass

    def _in_threads(self, function: Callable[[Any], Any], pieces: List[Any]) -> Iterable[Any]:
        """``function`` of every piece, in as many threads as MXNet has where there
        are enough parameters for it."""
        if self._threads == 1 or self._elements < MIN_FOR_THREADS:
            return map(function, pieces)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads)
        return self._pool.map(function, pieces)

    def state_arrays(self) -> Dict[str, np.ndarray]:
        """Everything a checkpoint needs to go on exactly: moments and float32 copies, by name."""
        kinds = (("mean", self._mean), ("variance", self._variance), ("master", self._master))
        return {f"{kind}/{name}": array.asnumpy() for kind, arrays in kinds for name, array in arrays.items()}

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The inverse of :meth:`state_arrays`.

        Raises:
            KeyError: the arrays are of another network.
        """
        for kind, target in (("mean", self._mean), ("variance", self._variance), ("master", self._master)):
            for name, array in target.items():
                array[:] = nd.array(arrays[f"{kind}/{name}"], dtype="float32")


class Sgd:
    """w <- w - rate g, with the gradients together cut to the norm ``clip`` (0: not cut). Section 3.3."""

    def __init__(self, parameters: Iterable[gluon.Parameter], clip: float = 0.0) -> None:
        self.parameters: List[gluon.Parameter] = list(
            {id(parameter): parameter for parameter in parameters}.values()
        )
        self.clip = clip
        self._views = HostViews()

    def gradients(self) -> List[Any]:
        """The gradient arrays, in the order of :attr:`parameters`."""
        return [parameter.grad() for parameter in self.parameters]

    def zero_gradients(self) -> None:
        """Start accumulating anew."""
        set_to_zero(self.gradients(), self._views)

    def step(self, rate: float, scale: float = 1.0) -> float:
        """As :meth:`BertAdam.step`."""
        flat = [gradient.reshape(-1) for gradient in self.gradients()]
        norm = scale * math.sqrt(sum(nd.dot(gradient, gradient).asscalar() for gradient in flat))
        if not math.isfinite(norm):
            return norm
        if self.clip and norm > self.clip:
            scale *= self.clip / norm
        for parameter in self.parameters:
            nd.sgd_update(
                parameter.data(), parameter.grad(), lr=rate, wd=0, rescale_grad=scale, out=parameter.data()
            )
        return norm
