"""From folders on disk to what :func:`bort.pretraining.loop.pretrain` takes: corpus, student, and a teacher
that fits both."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from bort.architecture import parse
from bort.backend import distributed
from bort.checkpoints import model_folder
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.masked_lm.masking import MaskingPolicy
from bort.masked_lm.teacher import LiveTeacher
from bort.models import Bert, Classifier, initialize
from bort.pretraining import teacher_cache
from bort.pretraining.loop import Corpus
from bort.text.shards.dataset import ShardDataset, read_index
from bort.text.tokenizers.loading import load_tokenizer
from bort.training.console import say

PAPER_BATCH = 1024
MICRO_BATCH = 8


def read_corpus(folder: PathLike, mask_ratio: float = 0.15, whole_words: bool = False) -> Tuple[Corpus,
                                                                                                Dict[str,
                                                                                                     Any]]:
    """The train and dev splits of a prepared corpus, and the facts that determine what a batch of it looks
    like.

    Raises:
        BortError: the folder is not a prepared corpus, or damaged.
    """
    train, dev = ShardDataset(folder, "train"), ShardDataset(folder, "valid")
    tokenizer = load_tokenizer(train.tokenizer_path)
    if tokenizer.fingerprint != train.fingerprint or tokenizer.vocab_size != train.vocab_size:
        raise BortError(f"{train.tokenizer_path}: not the tokenizer that this corpus was prepared with; copy "
                        "the folder again from where it is whole")
    policy = MaskingPolicy(tokenizer.vocab_size, tokenizer.mask_id, tokenizer.special_ids, mask_ratio,
                           word_starts=tokenizer.word_starts() if whole_words else None)
    shards = [(shard["name"], shard["sha256"]) for shard in read_index(folder)["splits"]["train"]["shards"]]
    facts = {"data": hashlib.sha256(json.dumps([shards, train.fingerprint]).encode("utf-8")).hexdigest(),
             "mask_ratio": mask_ratio, "whole_words": whole_words}
    return Corpus(train, dev, policy, tokenizer.pad_id, tokenizer, train.max_length), facts


def batches_of_step(batch_size: Optional[int], accumulate: Optional[int], max_tokens: int,
                    total: Optional[int], ranks: Optional[int] = None) -> Tuple[int, int]:
    """Sequences of a micro-batch, and micro-batches of a rank's step, from what the command line says of
    them.

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
            say(f"a step takes {turns * together} sequences, what the paper's {PAPER_BATCH} are nearest to "
                f"in micro-batches of {MICRO_BATCH} on {together // MICRO_BATCH} ranks")
        return MICRO_BATCH, turns
    micro = MICRO_BATCH if batch_size is None else batch_size
    if total is None:
        return micro, 1 if accumulate is None else accumulate
    if accumulate is not None or max_tokens:
        raise BortError("--total-batch-size says how many micro-batches make a step; leave out --accumulate "
                        "and --max-tokens")
    together = micro * (distributed.size() if ranks is None else ranks)
    if total < 1 or together < 1 or total % together:
        raise BortError(f"--total-batch-size {total} is not a multiple of {together} (--batch-size {micro} "
                        f"times {together // micro if micro > 0 else 0} ranks)")
    return micro, total // together


def make_student(architecture: Optional[str], init: Optional[PathLike], vocab_size: int, seed: int,
                 dropout: Optional[float] = None, max_length: int = 512) -> Bert:
    """A student drawn from ``seed``, or the network in ``init``.

    Raises:
        BortError: neither or both of them say what it is, its vocabulary is not the corpus's, or a number is
            out of range.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise BortError(f"--dropout must be at least 0 and below 1, not {dropout}")
    if max_length < 1:
        raise BortError(f"--max-length must be at least 1, not {max_length}")
    settings: Dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    if init is not None:
        model = _body(model_folder.load(init, architecture, **settings))
        if model.vocab_size != vocab_size:
            raise BortError(f"--init {init}: its vocabulary has {model.vocab_size} tokens, the corpus's "
                            f"{vocab_size}; prepare the corpus with this model's tokenizer")
        return model
    if architecture is None:
        raise BortError("--architecture or --init must say which network to train")
    model = Bert(parse(architecture), vocab_size, max_length=max_length, **settings)
    initialize(model, seed)
    return model


def _body(model: Any) -> Bert:
    return model.bort if isinstance(model, Classifier) else model


def teacher_facts(path: PathLike, corpus: Corpus, architecture: Optional[str] = None) -> Dict[str, Any]:
    """What identifies a teacher, read without loading it.

    Args:
        architecture: of a bare file: the same file is another network with another number of heads.

    Raises:
        BortError: there is no model at ``path``, or it was trained with another tokenizer than the corpus's.
    """
    located = model_folder.locate(path)
    config = located.config or {}
    vocab_size = config.get("vocab_size", corpus.policy.vocab_size)
    if vocab_size != corpus.policy.vocab_size:
        raise _wrong_vocabulary(path, vocab_size, corpus.policy.vocab_size)
    theirs = (config.get("tokenizer") or {}).get("fingerprint")
    ours = getattr(corpus.tokenizer, "fingerprint", None)
    if theirs is not None and ours is not None and theirs != ours:
        raise BortError(f"--teacher {path}: its tokenizer is not the corpus's, so its answers would be about "
                        f"other tokens; prepare the corpus with --tokenizer {path}")
    return {"teacher": config.get("sha256") or sha256_file(located.parameters), "teacher_architecture": None
            if architecture is None else str(parse(architecture, "--teacher-architecture"))}


def _wrong_vocabulary(path: PathLike, theirs: int, ours: int) -> BortError:
    return BortError(f"--teacher {path}: its vocabulary has {theirs} tokens, the student's {ours}; "
                     "distillation compares them token by token, so prepare the corpus with the teacher's "
                     f"tokenizer (--tokenizer {path})")


def load_teacher(path: PathLike, corpus: Corpus, temperature: float, max_length: int,
                 architecture: Optional[str] = None, dtype: str = "float32") -> LiveTeacher:
    """A teacher that answers for this corpus.

    Raises:
        BortError: its vocabulary or its longest sequence do not fit, or nothing says what network a bare file
        is of.
    """
    try:
        model = _body(model_folder.load(path, architecture))
    except BortError as error:
        if architecture is None and model_folder.locate(path).config is None:
            raise BortError(f"--teacher {path} is a bare parameter file, whose network "
                            f"--teacher-architecture D,A,H,I (or a preset) says ({error})") from error
        raise
    if model.vocab_size != corpus.policy.vocab_size:
        raise _wrong_vocabulary(path, model.vocab_size, corpus.policy.vocab_size)
    longest = max(int(corpus.train.lengths.max()), 1)
    if longest > model.max_length:
        raise BortError(f"--teacher {path}: it takes {model.max_length} tokens, the corpus has sequences of "
                        f"{longest}; prepare the corpus with --max-length {model.max_length}")
    if dtype != "float32":
        model.cast(dtype)
    return LiveTeacher(model, temperature)


def cached_teacher(folder: PathLike, top_k: int, passes: int, path: PathLike, corpus: Corpus,
                   facts: Dict[str, Any], mask_seed: int, temperature: float, max_length: int,
                   architecture: Optional[str] = None) -> teacher_cache.CachedTeacher:
    """Answers on disk, computed now if they are not there yet; with them there, the teacher is not even
    loaded.

    Raises:
        BortError: ``top_k`` is not below the vocabulary size, or what
        :func:`bort.pretraining.teacher_cache.build_cache` raises.
    """
    if not 1 <= top_k <= corpus.policy.vocab_size:
        raise BortError(f"--cache-teacher {top_k}: keep from 1 to {corpus.policy.vocab_size} tokens for each "
                        "position")
    # Not the run's own seed: students in another order and with other initial weights share the answers.
    facts = {**facts, "seed": mask_seed, "temperature": temperature, "top_k": top_k, "passes": passes,
             "max_length": max_length}
    place = Path(folder) / teacher_cache.cache_key(facts)
    if not (place / "index.json").is_file():
        teacher = load_teacher(path, corpus, temperature, max_length, architecture)
        teacher_cache.build_cache(folder, facts, teacher, corpus.train, corpus.policy, corpus.pad_id,
                                  max_length)
    return teacher_cache.CachedTeacher(place)
