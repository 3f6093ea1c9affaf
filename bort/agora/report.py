"""What a run of Agora is compared with, and what it reports: the side-by-side table, ``results.json``,
``agora.png``."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from bort.agora.algorithm import Agora
from bort.agora.journal import LOWEST, best_of
from bort.agora.points import Points
from bort.backend import distributed
from bort.files import read_jsonl
from bort.finetuning.hyperparameters import Theta
from bort.finetuning.loop import Settings
from bort.training.console import plot_curves
from bort.training.run_folder import on_root

PLAIN, LONG_PLAIN, DISTILLED, AGORA = ("plain", "plain, equal compute", "distillation, equal compute",
                                       "Agora")


def compare(agora: Agora, folder: Path) -> List[Dict[str, Any]]:
    """Plain fine-tuning and distillation beside Agora, on the same X, scored and chosen on the same E.

    * ``plain``: one training for every theta on X's own labels, the best on E.
    * ``plain, equal compute`` and ``distillation, equal compute``: for every training of Agora one with the
      same theta and as many steps, but on X alone, with its own labels or with the teacher's logits beside
      them; rounds after the first have seeds of their own, so that repetitions are not identical; again the
      best on E.

    Every line has the score on E, the metrics on dev, trainings, steps and seconds.
    """
    rows = distributed.from_root(on_root(lambda: [row for row in read_jsonl(folder / "agora.jsonl")]))
    first = [row for row in rows if row["round"] == 0]
    x, plan = agora.x, agora.plan
    table = []
    if not plan.soft:
        table.append(_line(PLAIN, first))
    else:
        jobs = [(row["theta_index"], 0, 0) for row in first]
        table.append(_line(PLAIN, _trainings(agora, "compare-plain", x, jobs, soft=False)))
    shift = seed_shifts(rows, [theta.seed for theta in plan.thetas])
    for method, tag, soft in ((LONG_PLAIN, "compare-long-plain", False), (DISTILLED, "compare-distilled",
                                                                          True)):
        # Agora's own first trainings, on X alone, are those of one of the two methods.
        known = [row for row in rows if (row["round"], row["attempt"]) == (0, 0) and soft == plan.soft]
        jobs = [(row["theta_index"], shift[row["round"], row["attempt"]], row["steps"])
                for row in rows[len(known):]]
        table.append(_line(method, known + (_trainings(agora, tag, x, jobs, soft) if jobs else [])))
    table.append(_line(AGORA, rows))
    return table


def seed_shifts(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Dict[Tuple[int, int], int]:
    """What is added to the seeds of Theta in each (round, attempt): 0 in the first, and never the same seed
    twice."""
    step = max(seeds) - min(seeds) + 1
    return {pair: step * place for place,
            pair in enumerate(sorted({(row["round"], row["attempt"]) for row in rows}))}


def _trainings(agora: Agora, tag: str, x: Points, jobs: Sequence[Tuple[int, int, int]],
               soft: bool) -> List[Dict[str, Any]]:
    """Trainings on X as (theta, shift of the seed, steps); 0 steps are what the epochs make."""
    timaeus, thetas = agora.timaeus, agora.plan.thetas
    settings: List[Settings] = []
    for index, shift, steps in jobs:
        one = timaeus.settings(thetas[index], soft)
        one = replace(one, seed=one.seed + shift)
        if steps:
            per_epoch = timaeus.steps(replace(one, epochs=1, max_steps=0), len(x))
            one = replace(one, epochs=max(1, -(-steps // per_epoch)), max_steps=steps)
        settings.append(one)
    described = [(place, {"theta": thetas[index]._asdict()}) for place, (index, _, _) in enumerate(jobs)]
    rows, _ = agora.journal.deal(tag, described, lambda place: timaeus.train(
        settings[place], x, f"{tag} {place + 1} of {len(jobs)}"), log=False)
    return rows


def _line(method: str, rows: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    # Lines of agora.jsonl have no `selection`: the score with the loss as tie-breaker says the same.
    ordered = [{**row, "index": place, "selection": row.get("selection", LOWEST if row["score"] is None
                                                            else row["score"] - 1e-6 * min(row["loss"] or 1e3,
                                                                                           1e3))} for place,
               row in enumerate(rows)]
    best = best_of(ordered) or {"score": None, "dev": {}}
    return {"method": method, "score": best["score"], "dev": best["dev"] or {}, "trainings": len(rows),
            "steps": sum(row["steps"] for row in rows), "seconds": round(sum(row["seconds"] for row in rows),
                                                                         1)}


def results_of_run(agora: Agora, record: Mapping[str, Any], metrics: Mapping[str, Any],
                   teacher: Mapping[str, Any], compared: Optional[List[Dict[str, Any]]], seed: int,
                   seconds: float) -> Dict[str, Any]:
    """The content of ``results.json``."""
    state, plan, evaluation = agora.state, agora.plan, agora.evaluation
    parts = dict(state.seconds)
    total = sum(parts.values()) or 1.0
    speed = {name: round(count / parts[part], 1) for name, part,
             count in (("tau_examples_per_second", "tau", state.generated),
                       ("labelled_per_second", "labelling", state.labelled)) if parts.get(part)}
    if compared is not None:
        for line in compared:
            if line["method"] == AGORA:
                line["score"] = state.best["score"]  # type: ignore[index]
                line["dev"] = metrics.get("dev", {})
                line["seconds"] = round(total, 1)
    return {**record, "metrics": metrics, "seed": seed, "teacher": dict(teacher), "metric_on_e": evaluation.metric,
            "e": len(evaluation.points), "x": len(agora.x), "best": state.best, "stopped": state.stopped,
            "theta": list(Theta(**state.best["theta"])), "rounds": state.history,  # type: ignore[index]
            "trainings": state.trainings, "steps": state.steps, "additions": len(agora.additions),
            "plan": {"thetas": len(plan.thetas), "prune": plan.prune, "budget": plan.budget, "replays": plan.replays,
                     "soft": plan.soft, "max_rounds": plan.max_rounds}, "ranks": distributed.size(),
            "seconds_by_part": parts, "share_by_part": {name: round(value / total, 4) for name, value in parts.items()},
            **speed, "compare": compared, "seconds": round(seconds, 2)}


def table_lines(results: Mapping[str, Any]) -> List[str]:
    """The side-by-side table and the run's parts as lines for the console."""
    lines = []
    if results.get("compare"):
        names = list(results["compare"][-1]["dev"])
        heading = ["", f"{results['metric_on_e']} on {results['evaluated_on']}",
                   *(f"dev {name}" for name in names), "trainings", "steps", "seconds"]
        rows = [["teacher", results["teacher"].get("score"),
                 *(results["teacher"].get("dev", {}).get(name) for name in names), "", "", ""]]
        rows += [[line["method"], line["score"], *(line["dev"].get(name) for name in names),
                  line["trainings"], line["steps"], f"{line['seconds']:.1f}"] for line in results["compare"]]
        cells = [heading] + [[("–" if cell is None else f"{100 * cell:.2f}" if isinstance(cell, float)
                               else str(cell)) for cell in row] for row in rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
        lines += ["  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column,
                            (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells]
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in results.get("share_by_part",
                                                                                   {}).items())
    speed = ", ".join(f"{results[key]:,.0f} {text}" for key,
                      text in (("tau_examples_per_second", "examples/s through tau"),
                               ("labelled_per_second", "labelled/s by the teacher")) if key in results)
    lines.append(f"{results['trainings']} trainings, {results['steps']} steps, {results['additions']} points "
                 f"made; time: {shares}" + (f"; {speed}" if speed else ""))
    return lines


def plot(results: Mapping[str, Any], path: Path) -> bool:
    """Score by round, size of D, Theta left."""
    rounds = [row["round"] + 1 for row in results["rounds"]]
    metric = results["metric_on_e"]
    scores: Dict[str, Any] = {f"best so far, {results['evaluated_on']}": (rounds,
                                                                          [row["best_score"]
                                                                           for row in results["rounds"]]),
                              f"best of the round, {results['evaluated_on']}": (rounds,
                                                                                [row["score"]
                                                                                 for row in results[
                                                                                                    "rounds"]])}
    if results["teacher"].get("score") is not None:
        scores["teacher"] = (rounds, [results["teacher"]["score"]] * len(rounds))
    if results["evaluated_on"] != "dev" and results["rounds"][0]["best_dev"]:
        name = next(iter(results["rounds"][0]["best_dev"]))
        scores[f"best so far, {name} on dev"] = (rounds,
                                                 [row["best_dev"].get(name) for row in results["rounds"]])
    return plot_curves(path, [{"x": "round", "y": metric, "lines": scores}, {"x": "round", "y": "points in D",
                                                                             "lines": {"all": (rounds,
                                                                                               [row["size"]
                                                                                                for row in results[
                                                                                                                   "rounds"]]),
                                                                                       **{name: (rounds,
                                                                                                 [
                                                                                                  row[
                                                                                                      "labels"][
                                                                                                                name]
                                                                                                  for row in results[
                                                                                                                     "rounds"]])
                                                                                          for name in results[
                                                                                                              "rounds"][
                                                                                                                        0][
                                                                                                                           "labels"]}}},
                              {"x": "round", "y": "sets left in Θ",
                               "lines": {"Θ": (rounds, [row["thetas"] for row in results["rounds"]])}}],
                       f"Agora on {results['task']}, seed {results['seed']}")
