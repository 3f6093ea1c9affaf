"""Corpora to shards: plan, train a tokenizer if asked, scatter blocks of documents, pack buckets,
write the index.

The main process reads the files in order and deals blocks of documents to the workers; each block becomes one
spill file, then each bucket one part of every split (an external shuffle: a bucket fits in memory, the corpus
need not). What is finished is on the disk under its final name, so a rerun after a kill at any moment
continues, with the same result.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from bort.errors import BortError
from bort.files import lock_file
from bort.json_files import read_json, write_json
from bort.text.corpus.readers import read_documents
from bort.text.corpus.sources import FORMATS, PAPER_MIN_WORDS, ReadCounts, Source, find_sources
from bort.text.corpus.vocabulary import train_from_sources
from bort.text.corpus.wikitext import parser_for_wikitext
from bort.text.shards import scatter
from bort.text.shards.dataset import (
    FORMAT_VERSION,
    INDEX_FILE,
    REPORT_FILE,
    SPLITS,
    TOKENIZER_FOLDER,
    split_ratios,
    token_dtype,
)
from bort.text.shards.plan import WORK_FOLDER, PrepareOptions, check_options, claim, make_plan
from bort.text.shards.report import dropped_in_words, make_report, read_report, sum_counts
from bort.text.shards.workers import WorkerPool
from bort.text.tokenizers.base import SETTINGS_FILE
from bort.text.tokenizers.loading import load_tokenizer


def prepare(options: PrepareOptions) -> Dict[str, Any]:
    """Make a folder of shards, or continue one, and return its report (also ``report.json``).

    The index and the shards depend on the inputs, the options and the seed, not on ``workers``, nor on how
    often the work was interrupted.

    Raises:
        BortError: an option or input is wrong, a file is damaged, no text is found, another run is writing to
            the folder, or the folder holds something else (shards made from other inputs or with other
            options included).
    """
    check_options(options)
    output = Path(options.output)
    sources, passed = find_sources(options.inputs, options.read.format, avoid=output)
    if any(source.format in ("wikipedia", "wiktionary") for source in sources):
        parser_for_wikitext()
    lock = lock_file(
        output / ".lock",
        "another run is writing to this folder; wait for it, or choose another",
        "choose another folder",
    )
    try:
        return _prepare_locked(options, sources, passed)
    finally:
        lock.release()


def _prepare_locked(options: PrepareOptions, sources: Sequence[Source], passed: List[str]) -> Dict[str, Any]:
    output = Path(options.output)
    begun = time.monotonic()
    plan, tokenizer_path = make_plan(options, sources)
    claim(output, plan)
    if (output / INDEX_FILE).is_file() and (output / REPORT_FILE).is_file():
        shutil.rmtree(output / WORK_FOLDER, ignore_errors=True)
        return {**read_report(output / REPORT_FILE), "already_finished": True}
    work = output / WORK_FOLDER
    work.mkdir(exist_ok=True)
    with WorkerPool(options.workers) as pool:
        trained = _make_tokenizer(options, sources, tokenizer_path, output / TOKENIZER_FOLDER, pool)
        settings = _settings(options, sources)
        pool.start(scatter.start_worker, settings)
        spills, reading, read_bytes = _scatter(options, sources, settings, work, pool)
        scattered = time.monotonic()
        counts = sum_counts(spills, reading)
        if not counts["sentences"]:
            for place in (work, output / TOKENIZER_FOLDER):  # so that the folder takes other options
                shutil.rmtree(place, ignore_errors=True)
            raise BortError(
                f"no text found in {', '.join(map(str, options.inputs))}: "
                + dropped_in_words(counts["dropped"])
            )
        results = _pack(options, settings, spills, work, pool)
    index = _index(plan, settings, results)
    report = make_report(
        index,
        counts,
        passed,
        {"tokenizer": trained, "scatter": scattered - begun - trained, "pack": time.monotonic() - scattered},
        read_bytes,
        options.workers,
    )
    write_json(output / REPORT_FILE, report)
    write_json(output / INDEX_FILE, index)
    shutil.rmtree(work, ignore_errors=True)
    for left in output.glob(".*.tmp"):  # what a killed run was writing
        left.unlink()
    return report


def _make_tokenizer(
    options: PrepareOptions, sources: Sequence[Source], path: Optional[Path], folder: Path, pool: WorkerPool
) -> float:
    """Put the tokenizer into its folder; returns the seconds it took to train one, 0 otherwise."""
    if (folder / SETTINGS_FILE).is_file():
        return 0.0
    if path is not None:
        load_tokenizer(path).save(folder)
        return 0.0
    begun = time.monotonic()
    pool.run_alone(
        train_from_sources,
        list(sources),
        options.read,
        _min_words(options),
        options.vocab_size,
        options.seed,
        str(folder),
    )
    return time.monotonic() - begun


def _min_words(options: PrepareOptions) -> Dict[str, int]:
    """The least words of a document by format: the paper's for dictionaries,
    unless the option says otherwise."""
    if options.min_words is not None:
        return dict.fromkeys(FORMATS, options.min_words)
    return {**dict.fromkeys(FORMATS, 1), **PAPER_MIN_WORDS}


def _settings(options: PrepareOptions, sources: Sequence[Source]) -> scatter.ScatterSettings:
    buckets = math.ceil(sum(source.text_bytes for source in sources) / options.bucket_bytes)
    return scatter.ScatterSettings(
        seed=options.seed,
        shuffle=options.shuffle,
        ratios=tuple(split_ratios(options.split)),
        buckets=1 if options.shuffle == "none" else min(max(1, buckets), 4096),
        max_length=options.max_length,
        output=str(options.output),
        tokenizer=str(Path(options.output) / TOKENIZER_FOLDER),
    )


def group_files(sources: Sequence[Source], size: int) -> List[List[Source]]:
    """Consecutive files that are read as one: large ones alone, small ones of a format together."""
    groups: List[List[Source]] = []
    taken = 0  # bytes of the last group
    for source in sources:
        if groups and groups[-1][0].format == source.format and taken + source.text_bytes <= size:
            groups[-1].append(source)
            taken += source.text_bytes
        else:
            groups.append([source])
            taken = source.text_bytes
    return groups


def _blocks(
    group: Sequence[Source], options: PrepareOptions, counts: ReadCounts, size: int
) -> Iterator[List[str]]:
    block: List[str] = []
    characters = 0
    for source in group:
        for document in read_documents(source, options.read, counts):
            block.append(document)
            characters += len(document)
            if characters >= size:
                yield block
                block, characters = [], 0
    if block:
        yield block


def _scatter(
    options: PrepareOptions,
    sources: Sequence[Source],
    settings: scatter.ScatterSettings,
    work: Path,
    pool: WorkerPool,
) -> Tuple[List[Path], List[Dict[str, Any]], int]:
    """All spill files in order, what reading each group left out, and the bytes read by this run."""
    # A spill file's table has an entry for each bucket; larger blocks keep it small beside the text.
    size = max(options.block_characters, 8192 * settings.buckets if settings.buckets > 256 else 0)
    least = _min_words(options)
    spills: List[Path] = []
    reading: List[Dict[str, Any]] = []
    read_bytes = 0
    with _progress("scatter", sum(source.size for source in sources), "B", options.progress) as advance:
        for number, group in enumerate(group_files(sources, size)):
            marker = work / f"group-{number:06d}.json"
            group_bytes = sum(source.size for source in group)
            known = _read_marker(marker)
            names = (
                [work / f"spill-{number:06d}-{block:06d}" for block in range(known["blocks"])]
                if known
                else []
            )
            if known is None or not all(name.is_file() for name in names):
                names = []
                counts = ReadCounts()
                for block, documents in enumerate(_blocks(group, options, counts, size)):
                    names.append(work / f"spill-{number:06d}-{block:06d}")
                    if not names[-1].is_file():
                        pool.submit(
                            scatter.scatter_block,
                            number,
                            block,
                            documents,
                            group[0].format,
                            str(names[-1]),
                            least[group[0].format],
                        )
                known = {"blocks": len(names), **asdict(counts)}
                write_json(marker, known)
                read_bytes += group_bytes
            spills.extend(names)
            reading.append(known)
            advance(group_bytes)
        pool.wait()
    return spills, reading, read_bytes


def _read_marker(path: Path) -> Optional[Dict[str, Any]]:
    """What a group's reading has left behind; None where it is to be done (again)."""
    if not path.is_file():
        return None
    marker = read_json(path)
    try:
        whole = all(type(marker[name]) is int and marker[name] >= 0 for name in ("blocks", "rows", "pages"))
        return marker if whole and isinstance(marker["broken"], list) else None
    except (KeyError, TypeError):
        return None


def _pack(
    options: PrepareOptions,
    settings: scatter.ScatterSettings,
    spills: Sequence[Path],
    work: Path,
    pool: WorkerPool,
) -> List[Dict[str, Any]]:
    if settings.shuffle == "none":
        buckets: List[Tuple[Optional[int], List[Path]]] = list(_runs(spills, options.bucket_bytes))
    else:
        buckets = [(number, list(spills)) for number in range(settings.buckets)]
    results = [work / f"bucket-{bucket:05d}.json" for bucket in range(len(buckets))]
    with _progress("pack", len(buckets), "bucket", options.progress) as advance:
        for bucket, ((number, files), result) in enumerate(zip(buckets, results)):
            if not result.is_file():
                pool.submit(scatter.pack_bucket, bucket, number, [str(file) for file in files], str(result))
            advance(1)
        pool.wait()
    return [read_json(result) for result in results]


def _runs(spills: Sequence[Path], size: int) -> Iterator[Tuple[None, List[Path]]]:
    run: List[Path] = []
    total = 0
    for spill in spills:
        run.append(spill)
        total += spill.stat().st_size
        # Half the bytes of the text is about what its ids take.
        if 2 * total >= size:
            yield None, run
            run, total = [], 0
    if run:
        yield None, run


def _index(
    plan: Dict[str, Any], settings: scatter.ScatterSettings, results: Sequence[Dict[str, Any]]
) -> Dict[str, Any]:
    tokenizer = read_json(Path(settings.tokenizer) / SETTINGS_FILE)
    splits = {}
    for split in SPLITS:
        entries = [result[split] for result in results if split in result]
        shards = [entry["shard"] for entry in entries if "shard" in entry]
        splits[split] = {
            "sequences": sum(shard["sequences"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "sentences": sum(entry["sentences"] for entry in entries),
            "shards": shards,
        }
    return {
        "format": FORMAT_VERSION,
        "tokenizer": tokenizer["fingerprint"],
        "vocab_size": tokenizer["vocab_size"],
        "dtype": token_dtype(tokenizer["vocab_size"]).name,
        "max_length": settings.max_length,
        "seed": settings.seed,
        "options": plan["options"],
        "inputs": plan["inputs"],
        "splits": splits,
    }


@contextlib.contextmanager
def _progress(name: str, total: int, unit: str, shown: bool) -> Iterator[Callable[[int], Any]]:
    if not shown:
        yield lambda amount: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit=unit, unit_scale=unit == "B") as bar:
        yield bar.update
