"""From folders on disk to what :func:`bort.pretraining.loop.pretrain` takes: corpus, student, and a teacher
that fits both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from bort.architecture import parse
from bort.backend import distributed
from bort.batching import LENGTH_MULTIPLE
from bort.checkpoints import model_folder, vocabulary
from bort.engines.base import Batch, Work, held, installed, preferred
from bort.engines.calibration import EXAMPLES, batches_of
from bort.engines.engine import first_choice, open_engine
from bort.errors import BortError
from bort.files import PathLike
from bort.masked_lm.masking import MaskingPolicy
from bort.masked_lm.teacher import LiveTeacher, MaskedLMTeacher, open_teacher
from bort.models import Bert, initialize
from bort.pretraining import teacher_cache
from bort.pretraining.settings import Corpus
from bort.pretraining.warm_start import warm_started
from bort.text.shards.dataset import ShardDataset, read_index
from bort.text.tokenizers.loading import load_tokenizer
from bort.training.console import say
from bort.training.step import products_of

PAPER_BATCH = 1024
MICRO_BATCH = 8


def read_corpus(
    folder: PathLike, mask_ratio: float = 0.15, whole_words: bool = False
) -> Tuple[Corpus, Dict[str, Any]]:
    """The train and dev splits of a prepared corpus, and the facts that determine what a batch of
    it looks like.

    Raises:
        BortError: the folder is not a prepared corpus, or damaged.
    """
    train, dev = ShardDataset(folder, "train"), ShardDataset(folder, "valid")
    tokenizer = load_tokenizer(train.tokenizer_path)
    if tokenizer.fingerprint != train.fingerprint or tokenizer.vocab_size != train.vocab_size:
        raise BortError(
            f"{train.tokenizer_path}: not the tokenizer that this corpus was prepared with; copy "
            "the folder again from where it is whole"
        )
    policy = MaskingPolicy(
        tokenizer.vocab_size,
        tokenizer.mask_id,
        tokenizer.special_ids,
        mask_ratio,
        word_starts=tokenizer.word_starts() if whole_words else None,
    )
    shards = [(shard["name"], shard["sha256"]) for shard in read_index(folder)["splits"]["train"]["shards"]]
    facts = {
        "data": hashlib.sha256(json.dumps([shards, train.fingerprint]).encode("utf-8")).hexdigest(),
        "mask_ratio": mask_ratio,
        "whole_words": whole_words,
    }
    return Corpus(train, dev, policy, tokenizer.pad_id, tokenizer, train.max_length), facts


class Subset:
    """Some sequences of a corpus, as a corpus."""

    def __init__(self, data: Any, indices: np.ndarray) -> None:
        self._data, self._indices = data, indices
        self.lengths = np.asarray(data.lengths)[indices]
        self.fingerprint = data.fingerprint

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._data[int(self._indices[index])]


def subset_of(corpus: Corpus, count: int, seed: int) -> Corpus:
    """The corpus with ``count`` training sequences, drawn from ``seed``; all of them for 0.

    Raises:
        BortError: ``count`` is negative.
    """
    if count < 0:
        raise BortError(f"--subset must not be negative, not {count}")
    if not 0 < count < len(corpus.train):
        return corpus
    chosen = np.random.default_rng([seed, 0x535542]).choice(len(corpus.train), count, replace=False)
    return replace(corpus, train=Subset(corpus.train, np.sort(chosen)))


def batches_of_step(
    batch_size: Optional[int],
    accumulate: Optional[int],
    max_tokens: int,
    total: Optional[int],
    ranks: Optional[int] = None,
) -> Tuple[int, int]:
    """Sequences of a micro-batch, and micro-batches of a rank's step, from what the command line
    says of them.

    Args:
        batch_size, accumulate: None where they are not given.
        total: sequences of a step over all ranks; where nothing at all is given, the paper's 1,024 (section
            4), or the nearest number that these ranks can share.
        ranks: by default those there are.

    Raises:
        BortError: ``total`` is no whole number of micro-batches, or goes with options that say otherwise.
    """
    if total is None and batch_size is None and accumulate is None and not max_tokens:
        together = MICRO_BATCH * (distributed.size() if ranks is None else ranks)
        turns = max(1, round(PAPER_BATCH / together))
        if turns * together != PAPER_BATCH:
            say(
                f"a step takes {turns * together} sequences, what the paper's {PAPER_BATCH} are nearest to "
                f"in micro-batches of {MICRO_BATCH} on {together // MICRO_BATCH} ranks"
            )
        return MICRO_BATCH, turns
    micro = MICRO_BATCH if batch_size is None else batch_size
    if total is None:
        return micro, 1 if accumulate is None else accumulate
    if accumulate is not None or max_tokens:
        raise BortError(
            "--total-batch-size says how many micro-batches make a step; leave out --accumulate "
            "and --max-tokens"
        )
    together = micro * (distributed.size() if ranks is None else ranks)
    if total < 1 or together < 1 or total % together:
        raise BortError(
            f"--total-batch-size {total} is not a multiple of {together} (--batch-size {micro} "
            f"times {together // micro if micro > 0 else 0} ranks)"
        )
    return micro, total // together


def make_student(
    architecture: Optional[str],
    init: Optional[PathLike],
    tokenizer: Any,
    seed: int,
    dropout: Optional[float] = None,
    max_length: int = 512,
    warm_start: Optional[PathLike] = None,
) -> Bert:
    """A student for the tokens of ``tokenizer``, drawn from ``seed``, or the network in ``init``, or one out
    of the larger network in ``warm_start``.

    Raises:
        BortError: neither or both of them say what it is, its vocabulary is not the corpus's, or a number is
            out of range.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise BortError(f"--dropout must be at least 0 and below 1, not {dropout}")
    if max_length < 1:
        raise BortError(f"--max-length must be at least 1, not {max_length}")
    settings: Dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    if warm_start is not None:
        if init is not None or architecture is None:
            raise BortError("--warm-start needs --architecture, and no --init")
        return warm_started(warm_start, architecture, tokenizer, dropout)
    if init is not None:
        loaded = model_folder.load(init, architecture, **settings)
        model = loaded.body
        if not vocabulary.fits(model.vocab_size, vocabulary.recorded_at(init), tokenizer):
            raise BortError(
                f"--init {init}: its vocabulary has {model.vocab_size} tokens, the corpus's "
                f"{tokenizer.vocab_size}; prepare the corpus with this model's tokenizer"
            )
        return model
    if architecture is None:
        raise BortError("--architecture or --init must say which network to train")
    model = Bert(parse(architecture), tokenizer.vocab_size, max_length=max_length, **settings)
    initialize(model, seed)
    return model


def teacher_for(path: PathLike, corpus: Corpus, architecture: Optional[str] = None) -> MaskedLMTeacher:
    """The teacher at ``path``, which answers for this corpus; it is not built yet.

    Raises:
        BortError: there is none, it was trained with another tokenizer, it takes shorter sequences, or
            nothing says what network a bare file is of.
    """
    teacher = open_teacher(path, architecture)
    teacher.check(
        corpus.tokenizer,
        int(corpus.train.lengths.max(initial=1)),
        f"prepare the corpus with the teacher's tokenizer (--tokenizer {path})",
    )
    return teacher


def teacher_facts(teacher: MaskedLMTeacher, architecture: Optional[str] = None) -> Dict[str, Any]:
    """What identifies a teacher; the same bare file is another network with another ``architecture``."""
    return {
        "teacher": teacher.identity,
        "teacher_architecture": None if architecture is None else str(teacher.architecture),
    }


def live_teacher(
    teacher: MaskedLMTeacher,
    temperature: float,
    vocab_size: int,
    dtype: str = "float32",
    corpus: Optional[Corpus] = None,
    sequences: int = 0,
) -> LiveTeacher:
    """The teacher as a network, for a student with ``vocab_size`` word vectors.

    Args:
        dtype: of the student's training. In float16 the network itself answers; otherwise an engine does,
            in what ``--precision`` says.
        corpus: what it will be asked about; ``sequences`` how many of these.

    Raises:
        BortError: as :meth:`~bort.masked_lm.teacher.MaskedLMTeacher.network`, or as
            :func:`bort.engines.engine.open_engine`.
    """
    model = teacher.network()
    if dtype == "float16":
        model.cast(dtype)
        return LiveTeacher(model, temperature, vocab_size)
    calibration: Sequence[Batch] = ()
    work = None
    if corpus is not None:
        length = min(corpus.max_length or model.max_length, model.max_length)
        work = Work(sequences * model.architecture.flops(length), length // LENGTH_MULTIPLE + 1)
        if preferred().precision in ("int8", "auto"):
            some = range(0, len(corpus.train), max(1, len(corpus.train) // EXAMPLES))
            calibration = batches_of([corpus.train[index] for index in some], corpus.pad_id, length)
    engine = open_engine(model, "masked_states", None, calibration, work)
    return LiveTeacher(model, temperature, vocab_size, engine, products_of(engine.report.precision))


@dataclass(frozen=True)
class CacheOptions:
    """A cache of a teacher's answers.

    Attributes:
        folder: where caches are kept.
        top_k: tokens to keep for each position.
        passes: epochs whose masks it covers.
        mask_seed: of the masks, not the run's own: students in another order and with other initial weights
            share the answers.
        temperature: T.
    """

    folder: PathLike
    top_k: int
    passes: int
    mask_seed: int
    temperature: float


def _engine_named() -> List[str]:
    """Engine and precision of a teacher whose answers are kept: they differ in the last digits."""
    kind, precision = preferred().kind, preferred().precision
    return [first_choice(precision, held() or installed()) if kind == "auto" else kind, precision]


def cached_teacher(
    options: CacheOptions, teacher: MaskedLMTeacher, corpus: Corpus, facts: Mapping[str, Any], student: Bert
) -> teacher_cache.CachedTeacher:
    """Answers on disk, computed now if they are not there yet; with them there, the teacher is
    not even loaded.

    Args:
        facts: what identifies the corpus and the teacher.

    Raises:
        BortError: ``top_k`` is not below the vocabulary size, or what
            :func:`bort.pretraining.teacher_cache.build_cache` raises.
    """
    vocab_size, max_length = corpus.policy.vocab_size, student.max_length
    if not 1 <= options.top_k <= vocab_size:
        raise BortError(
            f"--cache-teacher {options.top_k}: keep from 1 to {vocab_size} tokens for each position"
        )
    facts = {
        **facts,
        "seed": options.mask_seed,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "passes": options.passes,
        "max_length": max_length,
        "engine": _engine_named(),
    }
    place = Path(options.folder) / teacher_cache.cache_key(facts)
    if not (place / "index.json").is_file():
        network = live_teacher(
            teacher,
            options.temperature,
            vocab_size,
            corpus=corpus,
            sequences=options.passes * len(corpus.train),
        )
        teacher_cache.build_cache(options.folder, facts, network, corpus, max_length)
    return teacher_cache.CachedTeacher(place, student.vocab_size)
