"""One pre-training from folders on disk to model folders, curves and results: what ``run_pretrain.py`` calls,
and a notebook can."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Optional

from bort.files import PathLike
from bort.models import Bert
from bort.pretraining import inputs
from bort.pretraining.loop import draw_missing_curves, pretrain
from bort.pretraining.settings import Corpus, Intervals, Settings
from bort.training.console import say
from bort.training.run_folder import RunFolder


@dataclass(frozen=True)
class DataOptions:
    """What is trained on.

    Attributes:
        folder: made by ``python -m bort.text prepare``.
        mask_ratio: share of the tokens that is masked.
        whole_words: mask all tokens of a word, or none.
        subset: train on this many sequences only, drawn from the run's seed; 0 takes all.
    """

    folder: PathLike
    mask_ratio: float = 0.15
    whole_words: bool = False
    subset: int = 0


@dataclass(frozen=True)
class StudentOptions:
    """Which network is trained.

    Attributes:
        architecture: a preset, ``D,A,H,I``, or the ``best.json`` of a search.
        init: start from this model folder or ``.params`` file instead.
        dropout: 0.1 by default, or that of ``init``.
        max_length: positions of a new student.
        warm_start: a larger model that ``architecture`` starts from, see :mod:`bort.pretraining.warm_start`.
    """

    architecture: Optional[str] = None
    init: Optional[PathLike] = None
    dropout: Optional[float] = None
    max_length: int = 512
    warm_start: Optional[PathLike] = None


@dataclass(frozen=True)
class TeacherOptions:
    """Whom the student is distilled from.

    Attributes:
        path: a model folder or ``.params`` file.
        architecture: of a bare file.
        cache_top_k: compute its answers once and keep this many tokens of each; 0 asks it at every step.
        cache_folder: where; ``teacher-cache`` in the data's folder by default.
    """

    path: PathLike
    architecture: Optional[str] = None
    cache_top_k: int = 0
    cache_folder: Optional[PathLike] = None


def run_pretraining(
    data: DataOptions,
    student: StudentOptions,
    settings: Settings,
    output: PathLike,
    teacher: Optional[TeacherOptions] = None,
    intervals: Optional[Intervals] = None,
    resume: bool = False,
) -> Dict[str, Any]:
    """Pre-train a student, by masked language modelling alone or distilled from a teacher.

        from bort.pretraining.run import DataOptions, StudentOptions, run_pretraining
        from bort.pretraining.settings import Settings

        results = run_pretraining(DataOptions("shards"), StudentOptions("4,4,256,1024"),
                                  Settings(steps=1000, lr=1e-3), "runs/mlm")

    Args:
        settings: everything that decides what is learned; with a cache, ``mask_passes`` is at least 1.
        output: the run folder; it gets ``model/``, ``best/``, ``metrics.jsonl``,
            ``curves.png`` and ``results.json``.
        resume: go on with the run in it; one that has ended is not repeated.

    Returns:
        What ``results.json`` holds.

    Raises:
        BortError: options, files or models that do not fit together, or a training that diverged.
    """
    intervals = intervals or Intervals()
    corpus, facts = inputs.read_corpus(data.folder, data.mask_ratio, data.whole_words)
    corpus = inputs.subset_of(corpus, data.subset, settings.seed)
    network = inputs.make_student(
        student.architecture,
        student.init,
        corpus.tokenizer,
        settings.seed,
        student.dropout,
        student.max_length,
        student.warm_start,
    )
    files = None
    if teacher is not None:
        files = inputs.teacher_for(teacher.path, corpus, teacher.architecture)
        facts.update(inputs.teacher_facts(files, teacher.architecture))
    if data.subset:
        facts["subset"] = data.subset
    described: Dict[str, Any] = {
        "method": "mlm" if teacher is None else "kd",
        **asdict(settings),
        **facts,
        "architecture": network.architecture.to_dict(),
        "init": student.init,
        "dropout": network.dropout,
        "cache_teacher": teacher.cache_top_k if teacher is not None else 0,
        # They decide which step's model is in best/.
        "eval_interval": intervals.evaluate,
        "eval_sequences": intervals.evaluation_sequences,
        "max_length": None if network.max_length == corpus.max_length else network.max_length,
    }
    if student.warm_start is not None:
        described["warm_start"] = student.warm_start
    with RunFolder(output, described, resume) as run:
        results = run.results
        if results is not None:
            draw_missing_curves(run)
            return results
        answers: Any = None
        if teacher is not None and files is not None:
            if teacher.cache_top_k:
                folder = teacher.cache_folder or Path(data.folder) / "teacher-cache"
                answers = _cached(folder, teacher.cache_top_k, files, corpus, facts, network, settings)
            else:
                asked = settings.steps * settings.accumulate * settings.batch_size
                answers = inputs.live_teacher(
                    files, settings.loss.temperature, network.vocab_size, settings.dtype, corpus, asked
                )
        return pretrain(network, corpus, settings, run, answers, intervals)


def _cached(
    folder: PathLike,
    top_k: int,
    files: Any,
    corpus: Corpus,
    facts: Dict[str, Any],
    network: Bert,
    settings: Settings,
) -> Any:
    seed = settings.seed if settings.mask_seed is None else settings.mask_seed
    options = inputs.CacheOptions(
        folder=folder,
        top_k=top_k,
        passes=settings.mask_passes,
        mask_seed=seed,
        temperature=settings.loss.temperature,
    )
    cached = inputs.cached_teacher(options, files, corpus, facts, network)
    say(
        "teacher cache: {positions:,} positions, KL to the teacher {mean_kl_nats:.4f} nats on average and "
        "{max_kl_nats:.3f} at most, {mean_mass_outside:.2%} of the mass spread evenly".format(**cached.error)
    )
    return cached
