"""What a preparation of shards is asked to do, and the plan in its folder that a rerun is compared with."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from bort.errors import BortError
from bort.files import PathLike, open_regular
from bort.json_files import read_json, shorten, write_json
from bort.text.corpus.sources import DOCUMENTS, FORMATS, ReadOptions, Source
from bort.text.shards.dataset import FORMAT_VERSION, split_ratios
from bort.text.tokenizers.loading import find_default_tokenizer, load_tokenizer

PLAN_FILE = "plan.json"
WORK_FOLDER = "work"
SHUFFLES = ("documents", "sentences", "none")
PRESETS: Dict[str, Dict[str, str]] = {"paper": {"shuffle": "sentences", "split": "8,1,1"}}
"""Options by name. "paper": the sentences of all corpora together, shuffled and split 8-1-1."""
BLOCK_CHARACTERS = 2_000_000
BUCKET_BYTES = 32 << 20


@dataclass
class PrepareOptions:
    """What :func:`prepare` does; see ``python -m bort.text prepare --help``.

    ``workers`` and ``progress`` do not change the result. ``block_characters`` and ``bucket_bytes`` bound the
    memory, and decide which documents can come to stand together.
    """

    inputs: Sequence[PathLike]
    output: PathLike
    tokenizer: Optional[PathLike] = None
    vocab_size: Optional[int] = None
    max_length: int = 512
    split: str = "8,1,1"
    shuffle: str = "documents"
    min_words: Optional[int] = None
    seed: int = 0
    workers: int = 1
    read: ReadOptions = field(default_factory=ReadOptions)
    progress: bool = False
    block_characters: int = BLOCK_CHARACTERS
    bucket_bytes: int = BUCKET_BYTES


def check_options(options: PrepareOptions) -> None:
    """Raise BortError naming the first option that cannot be."""
    if options.shuffle not in SHUFFLES:
        raise BortError(f"--shuffle is one of {', '.join(SHUFFLES)}, not {options.shuffle!r}")
    if options.read.format not in FORMATS or options.read.documents not in DOCUMENTS:
        raise BortError(
            f"--format is one of {', '.join(FORMATS)}, and --documents one of {', '.join(DOCUMENTS)}"
        )
    if options.max_length < 8:
        raise BortError(f"--max-length must be at least 8, not {options.max_length}")
    if options.seed < 0 or options.workers < 1 or options.block_characters < 1 or options.bucket_bytes < 1:
        raise BortError("--seed must not be negative; --workers must be at least 1")
    if options.tokenizer is not None and options.vocab_size is not None:
        raise BortError("give either --tokenizer or --train-tokenizer, not both")
    split_ratios(options.split)


def _edges(path: Path, skip_broken: bool) -> str:
    """A fingerprint of a file's first and last 64 KiB: cheap, and enough to notice another file of
    the same name.

    Raises:
        BortError: the file cannot be read; with ``skip_broken``, reading passes over it and reports it later.
    """
    try:
        with open_regular(path) as stream:
            digest = hashlib.sha256(stream.read(1 << 16))
            stream.seek(max(0, path.stat().st_size - (1 << 16)))
            digest.update(stream.read())
    except (BortError, OSError) as error:
        if skip_broken:
            return "unreadable"
        raise BortError(f"{error}; make it readable, or leave it out with --skip-broken") from error
    return digest.hexdigest()[:16]


def make_plan(options: PrepareOptions, sources: Sequence[Source]) -> Tuple[Dict[str, Any], Optional[Path]]:
    """Everything that decides the result, and the folder of a given tokenizer."""
    path: Optional[Path] = None
    tokenizer: Any = {"train": "sentencepiece", "vocab_size": options.vocab_size}
    if options.vocab_size is None:
        path = Path(options.tokenizer) if options.tokenizer is not None else find_default_tokenizer()
        if path is None:
            raise BortError(
                "no tokenizer: give its folder with --tokenizer, or make one with "
                "--train-tokenizer sentencepiece --vocab-size 8000 (RoBERTa's is also found by "
                "itself in $BORT_HOME and ~/.mxnet/models)"
            )
        tokenizer = load_tokenizer(path).fingerprint
    inputs = [
        [source.name, source.size, source.format, _edges(source.path, options.read.skip_broken)]
        for source in sources
    ]
    chosen = {
        "max_length": options.max_length,
        "split": [round(share, 9) for share in split_ratios(options.split)],
        "shuffle": options.shuffle,
        "min_words": options.min_words,
        "seed": options.seed,
        **asdict(options.read),
        "block_characters": options.block_characters,
        "bucket_bytes": options.bucket_bytes,
    }
    digest = hashlib.sha256(repr(inputs).encode("utf-8", "surrogateescape")).hexdigest()
    return {
        "format": FORMAT_VERSION,
        "tokenizer": tokenizer,
        "options": chosen,
        "inputs": {"files": len(inputs), "bytes": sum(source.size for source in sources), "sha256": digest},
    }, path


def _untouched(output: Path) -> bool:
    """Whether there is a plan and nothing that was made by it."""
    work = output / WORK_FOLDER
    return {path.name for path in output.iterdir()} <= {".lock", PLAN_FILE, WORK_FOLDER} and not (
        work.is_dir() and any(work.iterdir())
    )


def claim(output: Path, plan: Dict[str, Any]) -> None:
    """Write the plan into a new folder, or one where an earlier plan came to nothing; in one that holds more,
    check that its plan is the same."""
    file = output / PLAN_FILE
    if file.is_file() and _untouched(output):
        write_json(file, plan)
        return
    if not file.is_file():
        others = [
            path.name for path in output.iterdir() if path.name != ".lock" and not path.name.endswith(".tmp")
        ]
        if others:
            raise BortError(
                f"{output}: not empty ({', '.join(sorted(others)[:3])}...), and not shards; "
                "choose another folder"
            )
        write_json(file, plan)
        return
    old = read_json(file)
    if old == plan:
        return
    if not isinstance(old, dict) or not isinstance(old.get("options"), dict):
        raise BortError(f"{file}: damaged; remove {output} and start again")
    names = [name for name in ("format", "tokenizer", "inputs") if old.get(name) != plan[name]]
    names += [
        f"{name} {shorten(old['options'].get(name))} -> {shorten(value)}"
        for name, value in plan["options"].items()
        if old["options"].get(name) != value
    ]
    raise BortError(
        f"{output}: holds shards of another preparation (different: {'; '.join(names)}); choose "
        "another folder, or remove this one"
    )
