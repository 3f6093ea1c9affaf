"""``run_finetune.py --algorithm dynabert``: a run from a fine-tuned teacher to ``results.json``."""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from bort.agora.tau import Tau
from bort.backend import distributed
from bort.checkpoints import model_folder
from bort.dynabert.adaptive import (
    SUPERNET,
    extract,
    extract_network,
    measure_importance,
    open_supernet,
    rewire_classifier,
)
from bort.dynabert.augmentation import augment
from bort.dynabert.grid import Multipliers, grid
from bort.dynabert.options import DynabertOptions
from bort.dynabert.report import row_of, write_table
from bort.dynabert.supernet import SupernetSettings, search_supernet
from bort.dynabert.training import AdaptiveTraining
from bort.errors import BortError
from bort.files import PathLike
from bort.finetuning.evaluation_split import draw
from bort.finetuning.loop import Settings, TrainingData
from bort.finetuning.losses import mean_loss
from bort.finetuning.results import deliver, final_line, write_outputs
from bort.finetuning.scoring import score
from bort.finetuning.sources import choose_tokenizer, contents, load_source
from bort.finetuning.task_data import ReadOptions, TaskData, read_task
from bort.json_files import read_sealed, write_json, write_sealed
from bort.models import Classifier
from bort.tasks.labels import align
from bort.text.tokenizers.loading import Tokenizer
from bort.training.console import say
from bort.training.run_folder import RunFolder, on_root

KEPT_FILE = "kept.json"
IMPORTANCE_BATCH = 32
"""Absolute values are added batch by batch, so the result depends on the batch; it must not depend on how
many ranks share the training's."""


@dataclass
class DynabertRun:
    """One command: the data, read and encoded by the teacher's tokenizer, and where the run goes.

    Attributes:
        teacher: folder of a classifier fine-tuned for the task.
        reading: how the data was read, for the record.
    """

    teacher: PathLike
    data: TaskData
    tokenizer: Tokenizer
    max_length: int
    output: Path
    options: DynabertOptions
    reading: Dict[str, Any]
    dropout: Optional[float] = None
    resume: bool = False
    checkpoint_interval: int = 500

    def load_teacher(self, dropout: Optional[float] = None) -> Classifier:
        """The teacher, its outputs in the order of the task's labels.

        Raises:
            BortError: it is no classifier for the task.
        """
        model = load_source(self.teacher, self.tokenizer, dropout=dropout)
        if not isinstance(model, Classifier):
            raise BortError(f"{self.teacher}: the teacher must be a classifier; fine-tune it first: python "
                            f"run_finetune.py --task {self.data.task.name} --data-dir DATA --model "
                            f"{self.teacher} --output TEACHER")
        align(model, self.data.task, self.teacher)
        model.task_name, model.encoding = self.data.task.name, self.data.task.encoding
        return model

    def run(self, settings: Settings) -> Dict[str, Any]:
        """Train with one seed; ``results.json``'s content. A run that has ended is not repeated."""
        options, data = self.options, self.data
        with RunFolder(self.output, self.described(settings), self.resume) as run:
            done = run.results
            if done is not None:
                say(f"{self.output}: has ended already")
                return done
            kept = self.keep(settings.seed)
            train = self.training_data(kept)
            model, teacher = self.load_teacher(self.dropout), self.load_teacher(0.0)
            if options.adaptive.importance_examples:
                source = train if options.importance_on == "train" else TrainingData(
                    data.development.tokens.token_ids, data.development.tokens.labels)
                rewire_classifier(model, measure_importance(
                    teacher, source, options.adaptive.importance_examples, IMPORTANCE_BATCH,
                    self.tokenizer.pad_id, settings.seed))
            more = self.augmented(train, settings.seed)
            say(f"{data.task.name}: {len(train)} training examples, {len(more) - len(train)} copies; "
                f"{len(grid(options.adaptive.widths, options.adaptive.depths, model.architecture))} "
                f"sub-networks of {model.architecture.display}")
            training = AdaptiveTraining(model, teacher, {"width": more, "depth": more, "finetune": train},
                                        lambda network: data.development.metrics(network,
                                                                                 self.tokenizer.pad_id),
                                        settings, options.adaptive, run)
            history = training.train(self.tokenizer.pad_id, self.checkpoint_interval)
            results = self.report(model, training, history, settings)
            run.finish(results)
            return results

    def described(self, settings: Settings) -> Dict[str, Any]:
        """What determines the result: a run goes on only with the same."""
        options = json.loads(json.dumps(asdict(self.options)))  # as the folder's own file will give them back
        options["sampled"] = options["adaptive"].pop("sampled")  # which earlier versions did not have
        return {"task": self.data.task.name, "algorithm": "dynabert", "teacher": str(self.teacher),
                "max_length": self.max_length, "dropout": self.dropout, **options,
                **{key: self.reading.get(key) for key in ("encoding", "limit", "seed")},
                "data": self.data.training.tokens.fingerprint, "tokenizer": self.tokenizer.fingerprint,
                **contents(self.data, self.teacher, self.options.tau_model), **asdict(settings)}

    def keep(self, seed: int) -> np.ndarray:
        """Indices of the training examples that are left out, written down for the search."""
        train = self.data.training
        if not self.options.keep_fraction:
            return np.zeros(0, dtype=np.int64)
        kept = draw(train.split, train.tokens.labels, self.options.keep_fraction, seed)
        on_root(lambda: write_sealed(self.output / KEPT_FILE, {
            "task": self.data.task.name, "data": train.tokens.fingerprint,
            "reading": {key: self.reading.get(key) for key in ("encoding", "limit", "seed")},
            "max_length": self.max_length, "indices": kept.tolist()}))
        return kept

    def training_data(self, kept: np.ndarray) -> TrainingData:
        """The training set without the examples that are kept."""
        tokens = self.data.training.tokens
        left = np.setdiff1d(np.arange(len(tokens)), kept)
        return TrainingData([tokens.token_ids[index] for index in left], tokens.labels[left])

    def augmented(self, train: TrainingData, seed: int) -> TrainingData:
        """With the copies that the tau-functions make."""
        options = self.options
        if not options.copies:
            return train
        where = options.tau_model or str(self.teacher)
        stored = model_folder.read(where)
        network = model_folder.build(stored.config, where)
        model_folder.set_parameters(network, stored.arrays, where)
        tau = Tau(options.tau, network, self.tokenizer, options.tau_rate, options.tau_top_k, self.max_length)
        return augment(train, tau, options.copies, seed,
                       self.output / "augmented" if distributed.size() == 1 else None)

    def report(self, model: Classifier, training: AdaptiveTraining, history: List[Dict[str, Any]],
               settings: Settings) -> Dict[str, Any]:
        """Score every sub-network, write the model folder, submissions, table and plot."""
        options, data, full = self.options, self.data, model.architecture
        rows = [row_of(one, full, metrics, model.vocab_size, model.max_length, min(128, self.max_length))
                for one, metrics in training.metrics().items()]
        record = {"task": data.task.name, "suite": data.task.suite, "algorithm": "dynabert",
                  "settings": asdict(settings), "teacher": str(self.teacher), "max_length": self.max_length}
        metrics = write_outputs(model, data, self.tokenizer, self.output, record)
        on_root(lambda: model_folder.save(
            model, self.output / "model", self.tokenizer,
            extra={"training": {**record, "metrics": metrics},
                   SUPERNET: {"widths": list(options.adaptive.widths),
                              "depths": list(options.adaptive.depths),
                              "stages": list(options.adaptive.stages)}}) and None)
        first = next(iter(data.task.metrics))
        on_root(lambda: say(write_table(self.output, rows, first,
                                        f"{data.task.name}: sub-networks of {full.display}")))
        return {**record, "metrics": metrics, "seed": settings.seed, "history": history,
                "passes": training.position.passes, "subnetworks": rows, "architecture": full.to_dict(),
                "rows": len(data.training.tokens),
                "ranks": distributed.size(), "seconds": round(training.position.seconds, 2)}


def run_dynabert(request: DynabertRun, settings: Dict[int, Settings]) -> int:
    """Run once for every seed of ``settings``; print the figures; 0."""
    output, results = request.output, []
    for seed, chosen in settings.items():
        one = replace(request, output=output if len(settings) == 1 else output / f"seed-{seed}")
        results.append(one.run(chosen))
    say(final_line(deliver(results, output)))
    return 0


def search_run(run: PathLike, task_name: Optional[str], data_dir: PathLike, output: Path,
               settings: Dict[str, Any], extract_to: Optional[PathLike] = None) -> List[Dict[str, Any]]:
    """``run_search.py --supernet``: W of every sub-network; table, plot, ``best.json``, and the winner's
    model folder.

    Args:
        run: a run of ``--algorithm dynabert`` that kept examples back (``--keep-fraction``).
        task_name: None for the run's own.
        settings: members of :class:`SupernetSettings`; those that are None take the run's own.

    Raises:
        BortError: no such run, or it kept nothing, or the data is not what it was trained on.
    """
    supernet = open_supernet(run)
    kept_file = supernet.folder.parent / KEPT_FILE
    if not kept_file.is_file():
        raise BortError(f"{kept_file}: no such file: the run kept no examples to measure errors on; train it "
                        "with --keep-fraction 0.1")
    kept = read_sealed(kept_file)
    tokenizer = choose_tokenizer(supernet.folder, None)
    data = read_task(task_name or kept["task"], data_dir, tokenizer, kept["max_length"],
                     ReadOptions(**kept["reading"]))
    if data.training.tokens.fingerprint != kept["data"]:
        raise BortError(f"{data_dir}: not the training data that {run} kept examples of; its file names "
                        f"{kept['task']}")
    chosen = SupernetSettings(**{"widths": supernet.widths, "depths": supernet.depths,
                                 **{name: value for name, value in settings.items() if value is not None}})
    split = data.training.split.subset(np.asarray(kept["indices"]))
    rows_of, labels = data.training.tokens.token_ids, data.training.tokens.labels[kept["indices"]]
    full = supernet.full

    def measured(one: Multipliers) -> Dict[str, Any]:
        network = extract_network(supernet, one)
        scores = score(network, [rows_of[index] for index in kept["indices"]], tokenizer.pad_id)
        return {"loss": mean_loss(scores, labels), "metrics": data.task.evaluate(split, scores),
                "dev": data.dev.metrics(network, tokenizer.pad_id) if data.dev is not None else {}}

    vocab_size, max_length = supernet.stored.config["vocab_size"], supernet.stored.config["max_length"]
    rows = search_supernet(full, vocab_size, max_length, chosen, measured)
    if distributed.is_root():
        output.mkdir(parents=True, exist_ok=True)
        best = Multipliers(rows[0]["width"], rows[0]["depth"])
        say(write_table(output, rows, next(name for name in rows[0] if name.startswith("kept ")),
                        f"{data.task.name}: W of the sub-networks of {full.display}",
                        [f"Error: {chosen.error} on {len(split)} training examples that were kept from the "
                         f"training; FLOPs at {chosen.length} tokens. T is the full network, whose W is 0."]))
        write_json(output / "results.json", {"task": data.task.name, "settings": asdict(chosen),
                                             "supernet": supernet.stored.config.get("sha256"),
                                             "subnetworks": rows})
        write_json(output / "best.json", {"architecture": best.architecture(full).to_dict(),
                                          "width": best.width, "depth": best.depth, "W": rows[0]["W"],
                                          "error": rows[0]["error"], "maximum_point": str(full)})
        if extract_to is not None:
            extract(run, extract_to, best, tokenizer)
    return rows
