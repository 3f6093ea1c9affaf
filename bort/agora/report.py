"""What a run of Agora is compared with, and what it reports: the side-by-side table, ``results.json``,
``agora.png``. The dev set's figures stand before those of the evaluation set everywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from bort.agora.algorithm import Agora, figures
from bort.agora.plan import DEV
from bort.agora.points import Points
from bort.agora.state import Best, Metrics, Training, best_of
from bort.agora.teacher import TeacherReport
from bort.backend import distributed
from bort.finetuning.hyperparameters import Theta
from bort.finetuning.loop import Settings
from bort.training.figures import plot_curves

PLAIN, LONG_PLAIN, DISTILLED, AGORA = (
    "plain",
    "plain, equal compute",
    "distillation, equal compute",
    "Agora",
)


@dataclass
class Compared:
    """A method's line in the side-by-side table: its best model's figures, and what all its trainings
    took."""

    method: str
    score: Optional[float]
    dev: Metrics
    trainings: int
    steps: int
    seconds: float


class Job(NamedTuple):
    """A training for comparison: its theta, what is added to the seed, and its steps (0: what the epochs
    make)."""

    theta_index: int
    seed_shift: int
    steps: int


def compare(agora: Agora) -> List[Compared]:
    """Plain fine-tuning and distillation beside Agora, on the same X, scored and chosen on the same E.

    * ``plain``: one training for every theta on X's own labels, the best on E.
    * ``plain, equal compute`` and ``distillation, equal compute``: for every training of Agora one with the
      same theta and as many steps, but on X alone, with its own labels or with the teacher's logits beside
      them; rounds after the first have seeds of their own, so that repetitions are not identical; again the
      best on E.
    """
    trainings = agora.journal.trainings()
    first = [training for training in trainings if training.round == 0]
    x, plan = agora.x, agora.plan
    if plan.soft:
        jobs = [Job(training.theta_index, 0, 0) for training in first]
        table = [_line(PLAIN, _trainings(agora, "compare-plain", x, jobs, soft=False))]
    else:
        table = [_line(PLAIN, first)]
    shift = seed_shifts(trainings, [theta.seed for theta in plan.thetas])
    for method, tag, soft in (
        (LONG_PLAIN, "compare-long-plain", False),
        (DISTILLED, "compare-distilled", True),
    ):
        # Agora's own first trainings, on X alone, are those of one of the two methods.
        known = [
            training
            for training in trainings
            if (training.round, training.attempt) == (0, 0) and soft == plan.soft
        ]
        jobs = [
            Job(training.theta_index, shift[training.round, training.attempt], training.steps)
            for training in trainings[len(known) :]
        ]
        table.append(_line(method, known + (_trainings(agora, tag, x, jobs, soft) if jobs else [])))
    table.append(_line(AGORA, trainings))
    return table


def seed_shifts(trainings: Sequence[Training], seeds: Sequence[int]) -> Dict[Tuple[int, int], int]:
    """What is added to the seeds of Theta in each (round, attempt): 0 in the first, and never the same seed
    twice."""
    step = max(seeds) - min(seeds) + 1
    attempts = sorted({(training.round, training.attempt) for training in trainings})
    return {attempt: step * place for place, attempt in enumerate(attempts)}


def _trainings(agora: Agora, tag: str, x: Points, jobs: Sequence[Job], soft: bool) -> List[Training]:
    """Trainings on X for comparison."""
    timaeus, thetas = agora.timaeus, agora.plan.thetas
    settings: List[Settings] = []
    for job in jobs:
        one = timaeus.settings(thetas[job.theta_index], soft)
        one = replace(one, seed=one.seed + job.seed_shift)
        if job.steps:
            per_epoch = timaeus.steps(replace(one, epochs=1, max_steps=0), len(x))
            one = replace(one, epochs=max(1, -(-job.steps // per_epoch)), max_steps=job.steps)
        settings.append(one)
    described = [
        Training(
            index=place,
            theta=thetas[job.theta_index],
            theta_index=job.theta_index,
            round=0,
            attempt=0,
            size=len(x),
            labels={},
            evaluated_on=agora.evaluation.name,
        )
        for place, job in enumerate(jobs)
    ]
    return agora.journal.deal(
        tag,
        described,
        lambda place: timaeus.train(settings[place], x, f"{tag} {place + 1} of {len(jobs)}"),
        log=False,
    )[0]


def _line(method: str, trainings: Sequence[Training]) -> Compared:
    best = best_of([replace(training, index=place) for place, training in enumerate(trainings)])
    return Compared(
        method=method,
        score=best.score if best else None,
        dev=best.dev if best else {},
        trainings=len(trainings),
        steps=sum(training.steps for training in trainings),
        seconds=round(sum(training.seconds for training in trainings), 1),
    )


class Timing(NamedTuple):
    """The run's seed, and the seconds it took since it was begun or resumed."""

    seed: int
    seconds: float


def results_of_run(
    agora: Agora,
    record: Mapping[str, Any],
    metrics: Mapping[str, Any],
    teacher: TeacherReport,
    compared: Optional[List[Compared]],
    timing: Timing,
) -> Dict[str, Any]:
    """The content of ``results.json``.

    Args:
        record: what the model folder remembers of the run.
        metrics: of the best model, by set.
    """
    state, plan, evaluation = agora.state, agora.plan, agora.evaluation
    best, parts = state.best_so_far, dict(state.seconds)
    total = sum(parts.values()) or 1.0
    speed = {
        name: round(count / parts[part], 1)
        for name, part, count in (
            ("tau_examples_per_second", "tau", state.generated),
            ("labelled_per_second", "labelling", state.labelled),
        )
        if parts.get(part)
    }
    for line in compared or ():
        if line.method == AGORA:
            line.score, line.dev, line.seconds = best.score, dict(metrics.get("dev", {})), round(total, 1)
    return {
        **record,
        "metrics": metrics,
        "seed": timing.seed,
        "teacher": asdict(teacher),
        "metric_on_e": evaluation.metric,
        "e": len(evaluation.points),
        "x": len(agora.x),
        "expand_from": plan.expand_from,
        "rounding": evaluation.classes.rounding,
        "best": asdict(best),
        "stopped": state.stopped,
        "theta": list(Theta(**best.theta)),
        "rounds": [asdict(one) for one in state.history],
        "trainings": state.trainings,
        "steps": state.steps,
        "additions": len(agora.additions),
        "plan": {
            "thetas": len(plan.thetas),
            **{name: getattr(plan, name) for name in ("prune", "budget", "replays", "soft", "max_rounds")},
        },
        "ranks": distributed.size(),
        "seconds_by_part": parts,
        "share_by_part": {name: round(value / total, 4) for name, value in parts.items()},
        **speed,
        "compare": None if compared is None else [asdict(line) for line in compared],
        "seconds": round(timing.seconds, 2),
    }


def table_lines(results: Mapping[str, Any]) -> List[str]:
    """The side-by-side table, the best model beside the teacher, and the run's parts, for the console."""
    lines = []
    metric, evaluated_on = results["metric_on_e"], results["evaluated_on"]
    if results.get("compare"):
        lines += _side_by_side(results)
    best, teacher = Best(**results["best"]), results["teacher"]
    lines.append(
        f"chosen model: {figures(metric, evaluated_on, best.score, best.dev)}; teacher: "
        f"{figures(metric, evaluated_on, teacher['score'], teacher['dev'])}"
    )
    if evaluated_on != DEV:
        lines.append(
            "(the evaluation set chose the model"
            + (
                ", tau transformed its members"
                if results["expand_from"] != "train" and results["additions"]
                else ""
            )
            + (" and the teacher was trained on it" if teacher["saw_evaluation"] else "")
            + ": its figures are no measure of new examples, the dev set's are)"
        )
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in results["share_by_part"].items())
    speed = ", ".join(
        f"{results[key]:,.0f} {text}"
        for key, text in (
            ("tau_examples_per_second", "examples/s through tau"),
            ("labelled_per_second", "labelled/s by the teacher"),
        )
        if key in results
    )
    lines.append(
        f"{results['trainings']} trainings, {results['steps']} steps, {results['additions']} points "
        f"made; time: {shares}" + (f"; {speed}" if speed else "")
    )
    return lines


def _side_by_side(results: Mapping[str, Any]) -> List[str]:
    """The table of ``--compare``: the dev set's metrics, then the score on E."""
    import pandas

    teacher = results["teacher"]
    names = list(results["compare"][-1]["dev"])
    on_e = f"{results['metric_on_e']} on the {'dev' if results['evaluated_on'] == DEV else 'evaluation'} set"
    rows = [{"": "teacher", **_cells(teacher, names, on_e), "trainings": "", "steps": "", "seconds": ""}]
    rows += [
        {
            "": line["method"],
            **_cells(line, names, on_e),
            "trainings": line["trainings"],
            "steps": line["steps"],
            "seconds": f"{line['seconds']:.1f}",
        }
        for line in results["compare"]
    ]
    width = max(len(row[""]) for row in rows)
    frame = pandas.DataFrame([{**row, "": row[""].ljust(width)} for row in rows])
    return [line.rstrip() for line in frame.to_string(index=False).splitlines()]


def _cells(row: Mapping[str, Any], names: Sequence[str], on_e: str) -> Dict[str, str]:
    values = {f"dev {name}": row["dev"].get(name) for name in names}
    values[on_e] = row["score"]
    return {name: "–" if value is None else f"{100 * value:.2f}" for name, value in values.items()}


def plot(results: Mapping[str, Any], path: Path) -> bool:
    """Draw the scores by round, on the dev set and on E, the size of D, and how many sets of Theta are
    left."""
    rounds: List[Dict[str, Any]] = results["rounds"]
    numbers = [row["round"] + 1 for row in rounds]

    def line(values: Sequence[Optional[float]]) -> Tuple[List[int], Sequence[Optional[float]]]:
        return numbers, values

    teacher = results["teacher"]
    scores: Dict[str, Any] = {}
    if results["evaluated_on"] != DEV:
        for name in list(rounds[0]["best_dev"])[:1]:
            scores[f"dev {name}, best so far"] = line([row["best_dev"].get(name) for row in rounds])
            scores[f"dev {name}, teacher"] = line([teacher["dev"].get(name)] * len(rounds))
    shown = "dev set" if results["evaluated_on"] == DEV else "evaluation set"
    scores[f"{shown}, best so far"] = line([row["best_score"] for row in rounds])
    scores[f"{shown}, best of the round"] = line([row["score"] for row in rounds])
    scores[f"{shown}, teacher"] = line([teacher["score"]] * len(rounds))
    sizes: Dict[str, Any] = {"all": line([row["size"] for row in rounds])}
    if len(rounds[0]["labels"]) <= 6:
        sizes.update({name: line([row["labels"][name] for row in rounds]) for name in rounds[0]["labels"]})
    return plot_curves(
        path,
        [
            {"x": "round", "y": results["metric_on_e"], "lines": scores},
            {"x": "round", "y": "points in D", "lines": sizes},
            {"x": "round", "y": "sets left in Θ", "lines": {"Θ": line([row["thetas"] for row in rounds])}},
        ],
        f"Agora on {results['task']}, seed {results['seed']}",
    )
