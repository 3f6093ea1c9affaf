"""A run of Agora, from options and data to ``results.json``."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np

from bort.agora.algorithm import Agora, figures
from bort.agora.expansion import Expansion
from bort.agora.journal import Journal
from bort.agora.options import AgoraOptions
from bort.agora.plan import DEV, Plan
from bort.agora.points import fingerprint
from bort.agora.report import Timing, compare, plot, results_of_run
from bort.agora.sets import Reading, Sets, make_sets
from bort.agora.student import Timaeus
from bort.agora.tau import Tau
from bort.agora.teacher import Socrates, TeacherReport, read_table, report_on, saw_evaluation
from bort.checkpoints import model_folder
from bort.errors import BortError
from bort.finetuning.hyperparameters import ConvergentSet, Theta, choose_grid, convergent_set
from bort.finetuning.loop import Settings
from bort.finetuning.results import write_outputs
from bort.finetuning.sources import choose_tokenizer, classifier_for, contents, load_source, own_tokenizer
from bort.finetuning.task_data import TaskData
from bort.finetuning.teacher import open_teacher
from bort.masked_lm.teacher import require_mlm_head
from bort.tasks.labels import stated_labels
from bort.text.tokenizers.loading import Tokenizer
from bort.training.console import say, warn
from bort.training.run_folder import RunFolder, on_root

FORMAT = 2
"""Of the files that a run leaves while it goes on. A run begun by another version is not gone on with."""


@dataclass(frozen=True)
class Shared:
    """What the runs of several seeds have in common.

    Attributes:
        source: the pre-trained student for a seed.
        tokenizer: the student's.
        table: the teacher's scores for the training split, (N, C), where a table takes a teacher's place.
        socrates: the teacher; None with a table.
        chs: the task's convergent set, if that is Theta.
    """

    options: AgoraOptions
    data: TaskData
    source: Callable[[int], Any]
    tokenizer: Tokenizer
    max_length: int
    table: Optional[np.ndarray]
    socrates: Optional[Socrates]
    tau: Optional[Tau]
    chs: Optional[ConvergentSet]

    @property
    def needs_soft_labels(self) -> bool:
        """Whether some training learns the teacher's logits on X."""
        return self.options.loop.soft or self.options.loop.compare


def prepare(
    options: AgoraOptions,
    data: TaskData,
    source: Callable[[int], Any],
    tokenizer: Tokenizer,
    max_length: int,
) -> Shared:
    """Open the teacher and tau's model, and hold everything against the task.

    Raises:
        BortError: options, files or models that do not fit together.
    """
    task, models = data.task, options.models
    assert data.train is not None
    if options.evaluation.on == DEV and (data.dev is None or not data.dev.split.labelled):
        raise BortError(f"--evaluate-on dev: {task.name} has no labelled dev set here")
    table, socrates = None, None
    if Path(models.teacher).is_file() and Path(models.teacher).suffix in (".npy", ".jsonl"):
        if options.tau.kinds:
            raise BortError(
                f"{models.teacher}: a table of predictions cannot label what tau makes; use "
                "--tau none, or a teacher model"
            )
        table = read_table(models.teacher, len(data.train.tokens), task)
    else:
        socrates = Socrates(open_teacher(models.teacher, tokenizer, task, max_length))
    tau = open_tau(options, source, tokenizer, max_length) if options.tau.kinds else None
    return Shared(
        options=options,
        data=data,
        source=source,
        tokenizer=tokenizer,
        max_length=max_length,
        table=table,
        socrates=socrates,
        tau=tau,
        chs=_convergent_set(options, task.name),
    )


def _convergent_set(options: AgoraOptions, task_name: str) -> Optional[ConvergentSet]:
    """The task's convergent set, with the hyper-parameters that were given in place of its own."""
    if not options.loop.chs:
        return None
    chs, given = convergent_set(task_name), dict(options.loop.given)
    if chs.note and "batch_size" not in given:
        say(f"{task_name}: {chs.note}")
    return chs._replace(batch_size=given.pop("batch_size", chs.batch_size), theta=chs.theta._replace(**given))


def open_tau(
    options: AgoraOptions, source: Callable[[int], Any], tokenizer: Tokenizer, max_length: int
) -> Tau:
    """The transformations, with the network that some of them need.

    Raises:
        BortError: a network of another vocabulary, or one whose MLM head says nothing where it is asked.
    """
    tau, models = options.tau, options.models
    model: Any = None
    if set(tau.kinds) - {"noise"}:
        if tau.model:
            own = own_tokenizer(tau.model) or choose_tokenizer(
                tau.model, models.tokenizer
            )
            if own.fingerprint != tokenizer.fingerprint:
                raise BortError(
                    f"--tau-model {tau.model}: has another tokenizer than the student, "
                    "whose tokens it is to replace; use a model of the same vocabulary, or "
                    "--tau noise"
                )
            model = load_source(tau.model, own)
        else:
            model = source(models.seed)
        where = str(tau.model or models.model)
        if "mlm" in tau.kinds:
            _check_mlm_head(where, options)
        elif where.startswith("random:"):
            warn(
                "tau draws its replacements from a network that was never trained; --tau-model "
                "or --tau noise would do better"
            )
    return Tau(tau.kinds, model, tokenizer, tau.rate, tau.top_k, max_length)


def _check_mlm_head(where: str, options: AgoraOptions) -> None:
    """Refuse to refill masks with a network whose MLM head says nothing."""
    try:
        if where.startswith("random:"):
            raise BortError(f"{where}: was never trained")
        known = () if options.tau.model else (options.models.architecture, options.models.heads)
        require_mlm_head(model_folder.read(where, *known), where)
    except BortError as error:
        raise BortError(
            f"--tau mlm: {error}; or use --tau noise,embedding, or --tau-model FOLDER with a pre-trained "
            "model of the same vocabulary"
        ) from error


def run_seed(shared: Shared, seed: int, base: Settings, folder: Path) -> Dict[str, Any]:
    """One run in ``folder``; its ``results.json``. A run that has ended is not repeated.

    Args:
        base: the settings of a single training that no theta changes.
    """
    started = time.monotonic()
    options, data = shared.options, shared.data
    if shared.chs is not None:
        base = replace(base, batch_size=shared.chs.batch_size)
    sets = make_sets(
        data,
        options.evaluation,
        Reading(options.data_dir, shared.tokenizer, shared.max_length, options.cache_dir),
        seed,
        shared.table is None,
    )
    plan = plan_of(shared, seed, base, len(sets.x))
    outputs = teacher_outputs(shared, sets)
    with RunFolder(folder, described(shared, base, plan, sets), options.resume) as run:
        done = run.results
        if done is not None:
            say(f"{folder}: has ended already")
            return done
        teacher = _teacher_report(shared, sets, outputs)
        _announce(shared, sets, plan, teacher)
        timaeus = student_of(shared, base, sets, seed)
        agora = Agora(
            timaeus, sets.x, _expansion(shared, sets, plan), plan, Journal(run), teacher.goal(sets.evaluation)
        )
        state = agora.run()
        best = state.best_so_far
        say(f"ended: {state.stopped}; the best model is of round {best.round + 1} with {Theta(**best.theta)}")
        compared = compare(agora) if options.loop.compare else None
        record = {
            "task": data.task.name,
            "suite": data.task.suite,
            "algorithm": "agora",
            "model": options.models.model,
            "settings": asdict(base),
            "evaluated_on": sets.evaluation.name,
            "max_length": shared.max_length,
        }
        model = timaeus.with_parameters(agora.best_parameters)
        metrics = write_outputs(model, data, shared.tokenizer, folder, record)
        results = results_of_run(
            agora, record, metrics, teacher, compared, Timing(seed, time.monotonic() - started)
        )
        on_root(lambda: plot(results, folder / "agora.png") and None)
        run.finish(results)
        on_root(lambda: shutil.rmtree(folder / "trainings", ignore_errors=True))
        return results


def plan_of(shared: Shared, seed: int, base: Settings, size: int) -> Plan:
    """The run's plan; ``size`` is the number of training examples."""
    loop = shared.options.loop
    thetas: List[Theta] = (
        [shared.chs.theta]
        if shared.chs is not None
        else choose_grid(loop.grid, base.lr, base.weight_decay, base.warmup, 0)
    )
    return Plan(
        thetas=tuple(thetas),
        prune=loop.prune,
        max_rounds=loop.max_rounds,
        min_rounds=loop.min_rounds,
        budget=size if loop.budget is None else loop.budget,
        replays=loop.replays,
        soft=loop.soft,
        seed=seed,
        expand_from=loop.expand_from,
    )


def teacher_outputs(shared: Shared, sets: Sets) -> Optional[np.ndarray]:
    """The teacher's scores (N, C) for E, None where a table lacks them; where they are needed, X gets its
    own."""
    x, evaluation, cache_dir = sets.x, sets.evaluation, shared.options.cache_dir
    if shared.socrates is None:
        assert shared.table is not None
        x.scores = shared.table[sets.kept] if shared.needs_soft_labels else None
        return None if sets.taken is None else shared.table[sets.taken]
    classifier = shared.socrates.classifier
    if shared.needs_soft_labels:
        assert shared.data.train is not None
        kept = shared.data.train.split.subset(sets.kept.tolist())
        x.scores = classifier.of_split(kept, x.token_ids, cache_dir)
    return classifier.of_split(evaluation.split, evaluation.points.token_ids, cache_dir)


def student_of(shared: Shared, base: Settings, sets: Sets, seed: int) -> Timaeus:
    """The student of a seed's run."""
    models = shared.options.models

    def build(head_seed: int) -> Any:
        return classifier_for(
            shared.data.task, shared.source(seed), head_seed, models.head, models.dropout
        )

    dev = None if sets.evaluation.name == DEV else shared.data.dev
    return Timaeus(build, base, sets.evaluation, dev, shared.tokenizer.pad_id, seed)


def _expansion(shared: Shared, sets: Sets, plan: Plan) -> Optional[Expansion]:
    if shared.tau is None or shared.socrates is None:
        return None
    data = shared.data
    forbidden = [part.tokens.token_ids for part in [data.dev, *data.others.values()] if part is not None]
    return Expansion(
        tau=shared.tau,
        socrates=shared.socrates,
        evaluation=sets.evaluation,
        tokenizer=shared.tokenizer,
        plan=plan,
        forbidden=forbidden,
    )


def _teacher_report(shared: Shared, sets: Sets, outputs: Optional[np.ndarray]) -> TeacherReport:
    dev, dev_outputs = shared.data.dev, None
    if dev is not None and dev.split.labelled and shared.socrates is not None:
        cache_dir = shared.options.cache_dir
        dev_outputs = shared.socrates.classifier.of_split(dev.split, dev.tokens.token_ids, cache_dir)
    report = report_on(shared.options.models.teacher, sets.evaluation, outputs, dev, dev_outputs)
    report.saw_evaluation = saw_evaluation(shared.options.models.teacher, sets.evaluation, sets.split)
    return report


def _announce(shared: Shared, sets: Sets, plan: Plan, teacher: TeacherReport) -> None:
    """Say what is about to be done."""
    grows = shared.tau is not None and bool(plan.budget)
    evaluation, shown = sets.evaluation, "taken out of the training set"
    seen = {True: ", which the teacher was trained on", False: ", which the teacher has not seen", None: ""}
    say(
        f"{shared.data.task.name}: {len(sets.x)} training examples "
        f"({_counts(evaluation.classes.balance(sets.x.labels))}), E is "
        f"{'the dev set' if evaluation.name == DEV else f'an evaluation set {shown}'} "
        f"({len(evaluation.points)} examples{seen[teacher.saw_evaluation]}), {len(plan.thetas)} sets of "
        f"hyper-parameters, {plan.trainings() if grows else len(plan.thetas)} trainings "
        f"{'until one is left' if grows else 'in all, as D does not grow'}"
    )
    if teacher.score is not None:
        say(f"teacher: {figures(evaluation.metric, evaluation.name, teacher.score, teacher.dev)}")


def described(shared: Shared, base: Settings, plan: Plan, sets: Sets) -> Dict[str, Any]:
    """What determines the result: a run goes on only with the same."""
    options = shared.options
    assert shared.data.train is not None
    models, tau, evaluation, data = options.models, options.tau, options.evaluation, shared.data
    return {
        "task": data.task.name,
        "algorithm": "agora",
        "format": FORMAT,
        **{
            name: getattr(models, name)
            for name in ("teacher", "model", "encoding", "head", "dropout", "limit")
        },
        **({} if models.labels is None else {"labels": stated_labels(models.labels)}),
        "tau": tau.shown,
        "tau_model": tau.model,
        "tau_rate": tau.rate,
        "tau_top_k": tau.top_k,
        "evaluate_on": evaluation.on,
        "evaluation_fraction": evaluation.fraction,
        "rounding": evaluation.rounding,
        "compare": options.loop.compare,
        **contents(data, models.model, models.teacher, tau.model),
        "evaluation": fingerprint(sets.evaluation.points),
        "max_length": shared.max_length,
        "data": shared.data.train.tokens.fingerprint,
        "tokenizer": shared.tokenizer.fingerprint,
        "x": len(sets.x),
        "e": len(sets.evaluation.points),
        "plan": {**asdict(plan), "thetas": [list(theta) for theta in plan.thetas]},
        **asdict(base),
    }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)
