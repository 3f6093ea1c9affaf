"""The lines a search trains and scores on: drawn once, masked once, the same for every candidate. No MXNet.

A *line* is a packed sequence ``<s> ... </s>`` of at most s tokens, as RoBERTa is fed (section 3.3: s = 512,
maintained casing, RoBERTa's vocabulary). Section 3.3 does not say at which positions the last layers of T and
of a candidate are compared. We mask the lines as section 4 does for distillation (15%, 80/10/10) and compare
at the masked positions: this is the error of what the winner will be trained for, and costs a seventh of
comparing everywhere.
"""
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Dict, Optional

import numpy as np

from bort.errors import BortError
from bort.files import PathLike, atomic_write, read_npy, sha256_file
from bort.json_files import read_sealed, write_sealed
from bort.masked_lm.batches import MaskedLMBatch, make_batch
from bort.masked_lm.masking import MaskingPolicy
from bort.search.settings import EMBEDDED, SearchInputs, SearchSettings
from bort.search.shared_folder import SearchFolder
from bort.text.corpus.embedded import embedded_documents
from bort.text.shards.dataset import INDEX_FILE, ShardDataset
from bort.text.shards.plan import PrepareOptions
from bort.text.shards.prepare import prepare
from bort.text.tokenizers.loading import (
    Tokenizer,
    find_default_tokenizer,
    find_tokenizer_files,
    load_tokenizer,
)

LINES_FILE = "lines.json"
"""Says how the stored lines were drawn, and their checksums."""


class Lines:
    """N lines as a corpus (:class:`bort.masked_lm.batches.Sequences`) whose masks never change.

    Args:
        tokens: integers, all lines in a row; ``offsets`` (N + 1,) where each begins.
        tokenizer: what made the tokens.
        max_length: s.
        mask_ratio, seed: decide the masks, together with a line's number.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, tokenizer: Tokenizer, max_length: int,
                 mask_ratio: float, seed: int) -> None:
        self.tokens, self.offsets, self.tokenizer = tokens, offsets, tokenizer
        self.lengths = np.diff(offsets)
        self.vocab_size, self.max_length, self.seed = tokenizer.vocab_size, max_length, seed
        self.policy = MaskingPolicy(tokenizer.vocab_size, tokenizer.mask_id, tokenizer.special_ids,
                                    mask_ratio)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index]:self.offsets[index + 1]]

    def batch(self, start: int, stop: int) -> MaskedLMBatch:
        """Lines ``start`` to ``stop`` with their scored positions, the same at every call."""
        return make_batch(self, np.arange(start, stop), self.policy, self.seed, 0, self.tokenizer.pad_id,
                          self.max_length)


def is_shards(corpus: PathLike) -> bool:
    """Whether ``corpus`` is a folder that ``python -m bort.text prepare`` wrote."""
    return (Path(corpus) / INDEX_FILE).is_file()


def choose_tokenizer(given: Optional[PathLike], teacher: Optional[PathLike]) -> Optional[PathLike]:
    """The tokenizer's folder: ``given``, else the teacher's own, else where RoBERTa's is kept; None to train
    one."""
    if given is None and teacher is not None and Path(teacher).is_dir() and find_tokenizer_files(teacher):
        return teacher
    return given if given is not None else find_default_tokenizer()


def open_corpus(folder: SearchFolder, inputs: SearchInputs, settings: SearchSettings,
                teacher: Optional[PathLike]) -> ShardDataset:
    """The corpus as shards: as it is, or prepared in ``RUN/shards`` when it is text.

    Args:
        teacher: the folder of T's files, if there are any.

    Raises:
        BortError: nothing there, or shards made with another tokenizer than the one asked for.
    """
    corpus, tokenizer = inputs.corpus, inputs.tokenizer
    if is_shards(corpus):
        dataset = ShardDataset(corpus)
        if tokenizer is not None and load_tokenizer(tokenizer).fingerprint != dataset.fingerprint:
            raise BortError(f"{corpus}: was made with another tokenizer than {tokenizer}; leave --tokenizer "
                            "out, or prepare the corpus with it")
        return dataset
    if str(corpus) == EMBEDDED:
        corpus = folder.path / "corpus.txt"
        with atomic_write(corpus) as stream:
            stream.write("\n\n".join(embedded_documents()) + "\n")
    chosen = choose_tokenizer(tokenizer, teacher)
    prepare(PrepareOptions(inputs=[corpus], output=folder.path / "shards", tokenizer=chosen,
                           vocab_size=inputs.tokenizer_size if chosen is None else None,
                           max_length=settings.max_length, split="1,0,0", seed=settings.seed))
    return ShardDataset(folder.path / "shards")


def draw_lines(dataset: ShardDataset, wanted: int, max_length: int, seed: int, name: str) -> Dict[str,
                                                                                                  np.ndarray]:
    """Draw ``wanted`` different sequences (section 3.3: without substitution); those longer than s are cut.

    Returns:
        ``tokens`` and ``offsets`` as :class:`Lines` takes them.

    Raises:
        BortError: the corpus has fewer.
    """
    if len(dataset) < wanted:
        raise BortError(f"{name}: gives {len(dataset)} lines of at most {max_length} tokens, but {wanted} "
                        "are needed (--steps x --batch-size + --speed-lines); lower these, or take a larger "
                        "corpus")
    chosen = np.random.default_rng([seed, 0x4C494E45]).permutation(len(dataset))[:wanted]
    lines = [dataset[int(index)] for index in chosen]
    lines = [line if len(line) <= max_length else np.append(line[:max_length - 1], line[-1])
             for line in lines]
    return {"tokens": np.concatenate(lines).astype(np.int32),
            "offsets": np.cumsum([0] + [len(line) for line in lines])}


def shared_lines(folder: SearchFolder, inputs: SearchInputs, settings: SearchSettings,
                 teacher: Optional[PathLike]) -> Lines:
    """The lines of a search, drawn by one of its processes and stored in ``RUN/lines``; the tokenizer goes
    beside them.

    A rerun reads what is stored, so a corpus that has changed since does not change the search.

    Args:
        teacher: the folder of T's files, if there are any.

    Raises:
        BortError: too few lines, or the stored ones are damaged.
    """
    path, corpus, max_length = folder.path / "lines", inputs.corpus, settings.max_length
    summary = path / LINES_FILE

    def draw(_: str) -> None:
        dataset = open_corpus(folder, inputs, settings, teacher)
        if dataset.max_length < max_length:
            warnings.warn(f"{corpus}: was prepared with at most {dataset.max_length} tokens a line, so lines "
                          f"are that long and not --max-length {max_length}; prepare it again for longer "
                          "ones", stacklevel=2)
        drawn = draw_lines(dataset, settings.lines, max_length, settings.seed, str(corpus))
        for name, array in drawn.items():
            save_array(path / f"{name}.npy", array)
        load_tokenizer(dataset.tokenizer_path).save(folder.path / "tokenizer")
        write_sealed(summary, {"corpus": str(corpus), "lines": settings.lines,
                               "tokenizer": dataset.fingerprint,
                               "max_length": min(dataset.max_length, max_length),
                               "files": {name: sha256_file(path / f"{name}.npy") for name in drawn}})

    folder.deal({"lines": 1.0}, lambda: ["lines"] if summary.is_file() else [], draw)
    stored, facts = load_tokenizer(folder.path / "tokenizer"), read_sealed(summary)
    if stored.fingerprint != facts.get("tokenizer"):
        raise BortError(f"{folder.path}: its lines were made with another tokenizer than it holds; choose "
                        "another --output")
    for name, digest in dict(facts.get("files", {})).items():  # earlier versions have none
        if sha256_file(path / f"{name}.npy") != digest:
            raise BortError(f"{path / name}.npy: was damaged or changed; the search cannot go on, choose "
                            "another --output")
    tokens, offsets = load_array(path / "tokens.npy"), load_array(path / "offsets.npy")
    return Lines(tokens, offsets, stored, max_length, settings.mask_ratio, settings.seed)


def save_array(path: PathLike, array: np.ndarray) -> None:
    """Write a ``.npy`` file that appears whole or not at all."""
    with atomic_write(path, "wb") as stream:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)


def load_array(path: PathLike) -> np.ndarray:
    """Memory-map a ``.npy`` file.

    Raises:
        BortError: it is missing or damaged.
    """
    try:
        return read_npy(path)
    except BortError as error:
        raise BortError(f"{error}; remove its folder to have it made again") from error
