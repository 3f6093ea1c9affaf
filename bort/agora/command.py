"""``run_finetune.py --algorithm agora``: its options, and a run from the command line's values to
``results.json``."""
from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np

from bort.agora.actors import SOLVABLE, Evaluation, Socrates, Timaeus, read_table, split_evaluation
from bort.agora.algorithm import Agora
from bort.agora.journal import Journal
from bort.agora.plan import PRUNINGS, Plan
from bort.agora.points import Points, balance, fingerprint, held_out, strata
from bort.agora.report import compare, plot, results_of_run, table_lines
from bort.agora.tau import Tau
from bort.checkpoints import inspection, model_folder
from bort.errors import BortError
from bort.finetuning import experiment
from bort.finetuning.hyperparameters import Theta, choose_grid, convergent_set
from bort.finetuning.loop import Settings
from bort.models import Classifier
from bort.text.tokenizers.loading import Tokenizer, find_tokenizer_files, load_tokenizer
from bort.training.console import say
from bort.training.run_folder import RunFolder, on_root


def add_agora_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``--algorithm agora``. ``--lr``, ``--weight-decay`` and ``--warmup`` are then what
    ``--grid small`` is built around, and given with ``--chs`` they take the place of that set's own;
    ``--seed`` draws what is held out and the tau-function, and 10,000 times it is added to the seeds of
    Theta."""
    group = parser.add_argument_group("agora")
    theta = group.add_mutually_exclusive_group()
    theta.add_argument("--grid", default="paper",
                       help="Theta: paper (500 sets, the default), small (6 sets around "
                       "--lr), or a JSON file")
    theta.add_argument("--chs", action="store_true",
                       help="only the task's convergent set, with its batch size (Tables "
                       "7-9); --lr, --weight-decay, --warmup and --batch-size win where they are given")
    group.add_argument("--prune", choices=PRUNINGS, default="one",
                       help="drop the worst of Theta after a round, the worse "
                       "half, or none of it")
    group.add_argument("--max-rounds", type=int, default=0,
                       help="0: until one set is left and nothing is gained")
    group.add_argument("--min-rounds", type=int, default=1, help="rounds before a reached goal, or a round "
                       "without additions, may end the run")
    group.add_argument("--budget", type=int, help="new points of a round (default: as many as there are "
                       "training examples)")
    group.add_argument("--tau", default="mlm", help="transformations: mlm, noise, embedding, several with "
                       "commas, or none")
    group.add_argument("--tau-model",
                       help="pre-trained model of the student's vocabulary for mlm and embedding "
                       "(default: --model)")
    group.add_argument("--tau-rate", type=float, default=0.15, help="probability of a change at each token")
    group.add_argument("--tau-top-k", type=int, default=10, help="candidates that may replace a token")
    group.add_argument("--evaluate-on", choices=("heldout", "dev"), default="heldout",
                       help="E: part of the training "
                       "set, or the dev set as in the paper")
    group.add_argument("--held-out-fraction", type=float, default=0.1)
    group.add_argument("--replays", type=int, default=0, help="repetitions of a round that brings nothing")
    group.add_argument("--soft", action="store_true",
                       help="learn the teacher's logits too (--distill-weight, "
                       "--temperature)")
    group.add_argument("--compare", action="store_true",
                       help="also plain fine-tuning and distillation at equal "
                       "compute")


def run_agora(args: argparse.Namespace, data: experiment.TaskData, source: Callable[[int], Any],
              tokenizer: Tokenizer, settings: Mapping[int, Settings], max_length: int,
              reading: Mapping[str, Any]) -> int:
    """Run Agora once for every seed of ``settings``; write the outputs; print the figures.

    Args:
        args: the command line, with :func:`add_agora_arguments`.
        source: the pre-trained network for a seed.
        reading: how ``data`` was read.

    Raises:
        BortError: options, files or models that do not fit together.
    """
    output = Path(args.output)
    setting = _Setting(args, data, source, tokenizer, max_length, reading)
    rows = []
    for seed in settings:
        folder = output if len(settings) == 1 else output / f"seed-{seed}"
        rows.append(setting.run(seed, settings[seed], folder))
    results = experiment.deliver(rows, output)
    for row in rows:
        for line in table_lines(row):
            say(line)
    say(experiment.final_line(results))
    return 0


class _Setting:
    """What the runs of several seeds have in common: data, teacher, tau."""

    def __init__(self, args: argparse.Namespace, data: experiment.TaskData, source: Callable[[int], Any],
                 tokenizer: Tokenizer, max_length: int, reading: Mapping[str, Any]) -> None:
        self.args, self.data, self.source, self.tokenizer = args, data, source, tokenizer
        self.max_length, self.reading, self.task = max_length, reading, data.task
        if args.evaluate_on == "dev" and (data.dev is None or not data.dev.split.labelled):
            raise BortError(f"--evaluate-on dev: {self.task.name} has no labelled dev set here")
        kinds = [] if args.tau == "none" else args.tau.split(",")
        self.table: Optional[np.ndarray] = None
        self.socrates: Optional[Socrates] = None
        if Path(args.teacher).is_file() and Path(args.teacher).suffix in (".npy", ".jsonl"):
            if kinds:
                raise BortError(f"{args.teacher}: a table of predictions cannot label what tau makes; use "
                                "--tau none, or a teacher model")
            self.table = read_table(args.teacher, len(data.train.tokens), self.task)
        else:
            own = load_tokenizer(args.teacher) if find_tokenizer_files(args.teacher) else tokenizer
            teacher = experiment.load_source(args.teacher, own)
            self.socrates = Socrates(teacher, args.teacher, own, tokenizer, self.task, max_length)
        self.tau = self._tau(kinds)
        self.chs = convergent_set(self.task.name) if args.chs else None
        if self.chs is not None:
            given = {name: getattr(args, name) for name in getattr(args, "given", ())}
            if self.chs.note and "batch_size" not in given:
                say(f"{self.task.name}: {self.chs.note}")
            self.chs = self.chs._replace(batch_size=given.pop("batch_size", self.chs.batch_size),
                                         theta=self.chs.theta._replace(**given))

    def _tau(self, kinds: List[str]) -> Optional[Tau]:
        args = self.args
        if not kinds:
            return None
        model: Any = None
        if set(kinds) - {"noise"}:
            if args.tau_model:
                own = experiment.own_tokenizer(args.tau_model) or experiment.choose_tokenizer(args.tau_model,
                                                                                              args.tokenizer)
                if own.fingerprint != self.tokenizer.fingerprint:
                    raise BortError(f"--tau-model {args.tau_model}: has another tokenizer than the student, "
                                    "whose tokens it is to replace; use a model of the same vocabulary, or "
                                    "--tau noise")
                model = experiment.load_source(args.tau_model, own)
            else:
                model = self.source(args.seed)
            where = str(args.tau_model or args.model)
            if "mlm" in kinds:
                self._check_mlm_head(where)
            elif where.startswith("random:"):
                say("warning: tau draws its replacements from a network that was never trained; --tau-model "
                    "or --tau noise would do better")
        return Tau(kinds, model, self.tokenizer, args.tau_rate, args.tau_top_k, self.max_length)

    def _check_mlm_head(self, where: str) -> None:
        """Refuse to refill masks with a network whose MLM head says nothing."""
        args, problem = self.args, ""
        if where.startswith("random:"):
            problem = "was never trained"
        else:
            stored = model_folder.read(where, *(() if args.tau_model else (args.architecture, args.heads)))
            network = model_folder.build(stored.config, where)
            if isinstance(network, Classifier):
                problem = "was fine-tuned as a classifier, and its MLM head was not trained along"
            elif inspection.mlm_head_state(model_folder.fit(network, stored.arrays, where),
                                           stored.config) != "trained":
                problem = "has a random MLM head (as the published conversion of Bort has)"
        if problem:
            raise BortError(f"--tau mlm: {where} {problem}, so that its tokens mean nothing; use --tau "
                            "noise,embedding, or --tau-model FOLDER with a pre-trained model of the same "
                            "vocabulary")

    def plan(self, seed: int, base: Settings, size: int) -> Plan:
        """The run's plan; ``size`` is the number of training examples."""
        args = self.args
        thetas: List[Theta] = [self.chs.theta] if self.chs is not None else choose_grid(
            args.grid, base.lr, base.weight_decay, base.warmup, 0)
        return Plan(tuple(thetas), args.prune, args.max_rounds, args.min_rounds,
                    size if args.budget is None else args.budget, args.replays, args.soft, seed)

    def actors(self, seed: int, base: Settings) -> Any:
        """X, E, the student, the plan and the teacher's scores on E."""
        args, data = self.args, self.data
        taken, whole = None, None
        if args.evaluate_on == "heldout":
            train = data.train
            taken = held_out(train.split, strata(self.task, train.tokens.labels), args.held_out_fraction,
                             seed)
            if any(example.group is not None for example in train.split.examples) and self.table is None:
                whole = self.task.read(args.data_dir, "train")
        x, evaluation, kept = split_evaluation(data, self.tokenizer, taken, whole, self.max_length,
                                               args.cache_dir)
        plan = self.plan(seed, base, len(x))
        if self.table is not None:
            teacher_scores = None if taken is None else self.table[taken]
            x.scores = self.table[kept] if args.soft or args.compare else None
        else:
            teacher_scores = self.socrates.of_split(evaluation.split, evaluation.points.token_ids,
                                                    args.cache_dir)
            if args.soft or args.compare:
                x.scores = self.socrates.of_split(data.train.split.subset(kept), x.token_ids, args.cache_dir)
        network = self.source

        def build(head_seed: int) -> Any:
            return experiment.classifier_for(self.task, network(seed), head_seed, args.head, args.dropout)

        timaeus = Timaeus(build, base, evaluation, None if evaluation.name == "dev" else data.dev,
                          self.tokenizer.pad_id, seed)
        return x, evaluation, timaeus, plan, teacher_scores

    def teacher_report(self, evaluation: Evaluation, scores: Optional[np.ndarray]) -> Dict[str, Any]:
        """The teacher's figures on E and on the dev set; warns when it is too weak for the algorithm's
        guarantee."""
        report: Dict[str, Any] = {"model": str(self.args.teacher)}
        if scores is not None:
            report.update(score=evaluation.score(scores), accuracy=evaluation.accuracy(scores))
            if report["accuracy"] < SOLVABLE:
                say(f"warning: the teacher is right on {100 * report['accuracy']:.1f}% of {evaluation.name} "
                    "only; Agora's guarantee needs 2/3")
        dev = self.data.dev
        if dev is not None and dev.split.labelled and self.socrates is not None:
            report["dev"] = {key: float(value) for key, value in self.task.evaluate(dev.split,
                                                                                    self.socrates.of_split(
                                                                                                           dev.split,
                                                                                                           dev.tokens.token_ids,
                                                                                                           self.args.cache_dir)).items()}
        return report

    def described(self, base: Settings, plan: Plan, x: Points, evaluation: Evaluation) -> Dict[str, Any]:
        """What determines the result: a run goes on only with the same."""
        args = self.args
        names = ("teacher", "model", "encoding", "head", "dropout", "limit", "tau", "tau_model", "tau_rate",
                 "tau_top_k", "evaluate_on", "held_out_fraction", "compare")
        return {"task": self.task.name, "algorithm": "agora", **{name: getattr(args, name) for name in names},
                **experiment.contents(self.data, args.model, args.teacher, args.tau_model),
                "evaluation": fingerprint(evaluation.points),
                "max_length": self.max_length, "data": self.data.train.tokens.fingerprint,
                "tokenizer": self.tokenizer.fingerprint, "x": len(x), "e": len(evaluation.points),
                "plan": {**asdict(plan), "thetas": [list(theta) for theta in plan.thetas]}, **asdict(base)}

    def run(self, seed: int, base: Settings, folder: Path) -> Dict[str, Any]:
        """One run in ``folder``; its ``results.json``. A run that has ended is not repeated."""
        started = time.monotonic()
        if self.chs is not None:
            base = replace(base, batch_size=self.chs.batch_size)
        x, evaluation, timaeus, plan, teacher_scores = self.actors(seed, base)
        with RunFolder(folder, self.described(base, plan, x, evaluation), self.args.resume) as run:
            if run.results is not None:
                say(f"{folder}: has ended already")
                return run.results
            teacher = self.teacher_report(evaluation, teacher_scores)
            trainings = plan.trainings() if self.tau is not None and plan.budget else len(plan.thetas)
            say(f"{self.task.name}: {len(x)} training examples ({_shown(balance(self.task, x.labels))}), E "
                f"is {'the dev set' if evaluation.name == 'dev' else 'held out from the training set'} "
                f"({len(evaluation.points)} examples), {len(plan.thetas)} sets of hyper-parameters, "
                f"{trainings} trainings " + ("until one is left" if self.tau is not None and plan.budget
                                             else "in all, as D does not grow")
                + (f", the teacher's {evaluation.metric} on E {100 * teacher['score']:.2f}"
                   if "score" in teacher else ""))
            data = self.data
            forbidden = [part.tokens.token_ids for part in [data.dev, *data.others.values()]
                         if part is not None]
            journal = Journal(run)
            agora = Agora(self.task, timaeus, self.socrates, self.tau, x, plan, journal, self.tokenizer,
                          forbidden, teacher.get("score"))
            state = agora.run()
            say(f"ended: {state.stopped}; the best model is of round {state.best['round'] + 1} with "
                f"{Theta(**state.best['theta'])}")
            compared = compare(agora, folder) if self.args.compare else None
            record = {"task": self.task.name, "suite": self.task.suite, "algorithm": "agora",
                      "model": self.args.model, "settings": asdict(base), "evaluated_on": evaluation.name,
                      "max_length": self.max_length}
            model = timaeus.with_parameters(agora.best_parameters)
            metrics = experiment.write_outputs(model, data, self.tokenizer, folder, record)
            results = results_of_run(agora, record, metrics, teacher, compared, seed,
                                     time.monotonic() - started)
            on_root(lambda: plot(results, folder / "agora.png") and None)
            run.finish(results)
            on_root(lambda: shutil.rmtree(folder / "trainings", ignore_errors=True))
            return results


def _shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
