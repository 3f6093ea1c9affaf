"""From a fine-tuned teacher to an adaptive network: importance, rewiring,
and the folder of a finished run."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from bort.backend import distributed
from bort.backend.mxnet import autograd, nd
from bort.batching import chunks, pad_batch
from bort.checkpoints import model_folder
from bort.dynabert.extraction import cut, description_of
from bort.dynabert.grid import Multipliers
from bort.dynabert.importance import Importance, importance_of
from bort.dynabert.rewiring import rewire
from bort.errors import BortError
from bort.files import PathLike
from bort.finetuning.loop import TrainingData
from bort.finetuning.losses import hard_loss, regression_loss
from bort.models import Classifier

SUPERNET = "dynabert"
"""The member of ``config.json`` that says which sub-networks a network was trained for."""


def measure_importance(model: Classifier, data: TrainingData, examples: int, batch_size: int, pad_id: int,
                       seed: int) -> Importance:
    """Importance of a classifier's heads and neurons for the loss on true labels, dropout off.

    Args:
        data: the training set, or the dev set as published; ``examples`` of it are drawn with ``seed``.
    """
    parameters = {name: parameter for name, parameter in model.bort._collect_params_with_prefix().items()
                  if not name.startswith("decoder.")}
    before = {name: parameter.grad_req for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad_req = "write"

    def backward(batch: np.ndarray) -> None:
        ids, valid = pad_batch([data.token_ids[index] for index in batch], pad_id, model.max_length)
        context = distributed.context()
        with autograd.record(train_mode=False):
            scores = model(nd.array(ids, dtype="int32", ctx=context), nd.array(valid, ctx=context))
            labels = nd.array(data.labels[batch], dtype="float32", ctx=context)
            loss = (regression_loss if model.num_outputs == 1 else hard_loss)(scores, labels).mean()
        loss.backward()

    try:
        return importance_of(model.architecture, parameters,
                             importance_batches(data, examples, batch_size, seed), backward)
    finally:
        for name, parameter in parameters.items():
            parameter.grad_req = before[name]


def importance_batches(data: TrainingData, count: int, batch_size: int, seed: int) -> List[np.ndarray]:
    """Indices of ``count`` examples drawn without repeats, in batches of similar length."""
    rng = np.random.default_rng([seed, 0x494D50])
    drawn = rng.choice(len(data), min(count, len(data)), replace=False)
    lengths = np.array([len(data.token_ids[index]) for index in drawn])
    return list(chunks(drawn[np.argsort(lengths, kind="stable")], batch_size))


def rewire_classifier(model: Classifier, importance: Importance) -> None:
    """Put the important heads and neurons first, in place."""
    body = rewire(model_folder.parameter_arrays(model.body), model.architecture, importance)
    model_folder.set_parameters(model.body, body, "rewiring")


class Supernet(NamedTuple):
    """An adaptive network as its folder holds it.

    Attributes:
        folder: of the model.
        stored: its configuration and arrays.
        widths, depths: what it was trained for.
    """

    folder: Path
    stored: Any
    widths: Sequence[float]
    depths: Sequence[float]

    @property
    def full(self) -> Any:
        """The architecture of the full network."""
        return model_folder.build(self.stored.config, str(self.folder)).architecture

    @property
    def task(self) -> Optional[str]:
        """The task it was trained for; None where that is not recorded."""
        training = self.stored.config.get("training")
        recorded = training.get("task") if isinstance(training, Mapping) else None
        return recorded if isinstance(recorded, str) else None

    @property
    def max_length(self) -> int:
        """Tokens of an input, as it was trained; all that the model takes where that is not recorded."""
        training = self.stored.config.get("training")
        recorded = training.get("max_length") if isinstance(training, Mapping) else None
        most = int(self.stored.config.get("max_length", 512))
        return min(recorded, most) if isinstance(recorded, int) and recorded > 0 else most


def open_supernet(path: PathLike) -> Supernet:
    """The adaptive network of a run of ``run_finetune.py --algorithm dynabert``, or its model folder.

    Raises:
        BortError: there is none, or the model was not trained for several widths.
    """
    folder = Path(path)
    if (folder / "model" / model_folder.CONFIG_FILE).is_file():
        folder = folder / "model"
    stored = model_folder.read(folder)
    facts = stored.config.get(SUPERNET)
    if not isinstance(facts, Mapping) or not all(
            isinstance(facts.get(name), list) and facts[name] and all(
                isinstance(value, (int, float)) and not isinstance(value, bool) for value in facts[name])
            for name in ("widths", "depths")):
        raise BortError(f"{folder}: was not trained for several widths and depths; train it: "
                        "python run_finetune.py --algorithm dynabert --teacher FINE_TUNED --output RUN ...")
    return Supernet(folder, stored, tuple(facts["widths"]), tuple(facts["depths"]))


def extract_network(supernet: Supernet, chosen: Multipliers) -> Classifier:
    """One sub-network as a network of its own size."""
    full = supernet.full
    model = model_folder.build(description_of(supernet.stored.config, full, chosen), str(supernet.folder))
    whole = model_folder.build(supernet.stored.config, str(supernet.folder))
    arrays = model_folder.fit(whole, supernet.stored.arrays, str(supernet.folder))
    model_folder.set_parameters(model, cut(arrays, full, chosen), str(supernet.folder))
    return model


def extract(path: PathLike, output: PathLike, chosen: Multipliers, tokenizer: Optional[Any] = None) -> Path:
    """Write one sub-network as a model folder; see ``python -m bort.dynabert extract``.

    Returns:
        The folder.
    """
    supernet = open_supernet(path)
    facts: Dict[str, Any] = {"extracted_from": {"sha256": supernet.stored.config.get("sha256"),
                                                "width": chosen.width, "depth": chosen.depth}}
    if "training" in supernet.stored.config:
        facts["training"] = supernet.stored.config["training"]
    return model_folder.save(extract_network(supernet, chosen), output, tokenizer, extra=facts)
