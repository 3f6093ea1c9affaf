"""Every task's files in the official layout, a few rows each, made in code; a tokenizer that needs no
vocabulary."""
from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence

import numpy as np

from bort.text.tokenizers.base import Tokenizer

WORDS = ("river boat crew storm sail harbour light rope anchor wind tide captain deck island bird map north "
         "stone fire bread").split()
GOOD, BAD = ("calm", "bright", "safe"), ("dark", "broken", "lost")


class WordTokenizer:
    """A stand-in for ``bort.text``: one id from 10 to ``vocab_size`` - 1 for each white-space-separated
    word."""

    kind = "words"
    MARKER = Tokenizer.MARKER
    bos_id, pad_id, eos_id, unk_id, mask_id, marker_id = 0, 1, 2, 3, 4, 5
    special_ids = frozenset(range(6))

    def __init__(self, vocab_size: int = 200) -> None:
        self.vocab_size = vocab_size
        self.fingerprint = f"words-{vocab_size}"
        self.calls = 0

    def encode(self, text: str) -> List[int]:
        words = text.replace(self.MARKER, f" {self.MARKER} ").split()
        return [self.marker_id if word == self.MARKER else 10 + zlib.crc32(word.encode())
                % (self.vocab_size - 10) for word in words]

    def encode_batch(self, texts: Sequence[str]) -> List[List[int]]:
        self.calls += 1
        return [self.encode(text) for text in texts]


class Maker:
    """Draws sentences whose label shows in one word, so that a model could learn them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def words(self, count: int) -> str:
        return " ".join(self.rng.choice(WORDS, count))

    def sentence(self, positive: bool = True) -> str:
        return f"The {self.words(3)} was {self.rng.choice(GOOD if positive else BAD)} ."

    def flag(self) -> bool:
        return bool(self.rng.integers(2))


Builder = Callable[[Path, Maker, int], None]


def tsv(path: Path, rows: Iterable[Sequence[Any]], end: str = "\n", bom: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((bom + "\n".join("\t".join(map(str, row)) for row in rows) + end).encode("utf-8"))


def jsonl(path: Path, records: Iterable[Any], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(map(json.dumps, records)) + end).encode("utf-8"))


def _cola(folder: Path, make: Maker, rows: int) -> None:
    for split in ("train", "dev"):
        labels = [make.flag() for _ in range(rows)]
        tsv(folder / f"{split}.tsv", [("gj04", int(label), "" if label else "*", make.sentence(label))
                                      for label in labels], end="" if split == "dev" else "\n")
    tsv(folder / "test.tsv", [("index", "sentence"), *((i, make.sentence()) for i in range(rows))])


def _table(columns: Sequence[str], test_columns: Sequence[str], labels: Sequence[Any], bom: str = "",
           names: Mapping[str, Sequence[str]] = {}) -> Builder:
    def cell(column: str, row: int, label: int, make: Maker) -> Any:
        if column in ("index", "id"):
            return row
        if column in ("label", "is_duplicate", "gold_label", "Quality", "score", "label1"):
            return labels[label]
        if column in ("sentence", "sentence1", "question", "question1", "#1 String"):
            return make.sentence(label == len(labels) - 1)
        if column in ("sentence2", "question2", "#2 String"):
            return make.sentence(label == len(labels) - 1)
        return f"{column}-{row}"

    def build(folder: Path, make: Maker, rows: int) -> None:
        for split in ("train", "dev", "test"):
            header = test_columns if split == "test" else columns
            for name in names.get(split, (f"{split}.tsv",)):
                drawn = [int(make.rng.integers(len(labels))) for _ in range(rows)]
                tsv(folder / name, [header, *([cell(column, row, label, make) for column in header] for row,
                                              label in enumerate(drawn))], bom="" if split == "test" else bom)

    return build


def _records(record: Callable[[Maker, int, bool], Any], names: Mapping[str, str] = {}) -> Builder:
    def build(folder: Path, make: Maker, rows: int) -> None:
        for split, name in (names or {"train": "train", "dev": "val", "test": "test"}).items():
            jsonl(folder / f"{name}.jsonl", [record(make, row, split == "test" and not names)
                                             for row in range(rows)], end="" if split == "test" else "\n")

    return build


def _pair(keys: Sequence[str], labels: Sequence[Any], idx: type = int,
          extra: Mapping[str, Any] = {}) -> Callable:
    def record(make: Maker, row: int, unlabelled: bool) -> Any:
        label = int(make.rng.integers(len(labels)))
        made = {key: make.sentence(label == 0) for key in keys}
        return {**made, "idx": idx(row), **({} if unlabelled else {"label": labels[label]}), **extra}

    return record


def _copa(make: Maker, row: int, unlabelled: bool) -> Any:
    label = int(make.flag())
    return {"premise": make.sentence(), "choice1": make.sentence(label == 0),
            "choice2": make.sentence(label == 1), "question": "cause" if make.flag() else "effect",
            **({} if unlabelled else {"label": label}), "idx": row}


def _wic(make: Maker, row: int, unlabelled: bool) -> Any:
    label, word = make.flag(), str(make.rng.choice(WORDS))
    first, second = f"The {word} was {'calm' if label else 'dark'}", f"A {word} came by"
    return {"word": word, "sentence1": first, "sentence2": second, "start1": 4, "end1": 4 + len(word),
            "start2": 2, "end2": 2 + len(word), "version": 1.1, **({} if unlabelled else {"label": label}),
            "idx": row}


def _wsc(make: Maker, row: int, unlabelled: bool) -> Any:
    label = make.flag()
    text = f"The captain  thanked the crew since {'he was calm' if label else 'they were lost'} ."
    return {"text": text, "target": {"span1_text": "The captain", "span1_index": 0,
                                     "span2_text": "he" if label else "they", "span2_index": 6},
            "idx": row, **({} if unlabelled else {"label": label})}


def _multirc(make: Maker, row: int, unlabelled: bool) -> Any:
    questions = []
    for number in range(2):
        answers = []
        for option in range(3):
            label = int(make.rng.integers(3) == 0)
            answers.append({"text": make.sentence(bool(label)), "idx": row * 10 + number * 3 + option,
                            **({} if unlabelled else {"label": label})})
        questions.append({"question": f"What was {make.words(2)} ??", "idx": row * 2 + number,
                          "answers": answers})
    return {"idx": row, "version": 1.1, "passage": {"text": f"{make.sentence()}  {make.sentence()}",
                                                    "questions": questions}}


def _record(make: Maker, row: int, unlabelled: bool) -> Any:
    text = "Anna Kohl met Bo in Ulm.\n@highlight\nBo left Ulm"
    entities = [{"start": 0, "end": 8}, {"start": 14, "end": 15}, {"start": 20, "end": 22},
                {"start": 36, "end": 37}]
    qas = []
    for number in range(2):
        answer = ["Anna Kohl", "Bo"][int(make.flag())]
        start = text.index(answer)
        qas.append({"query": f"Later @placeholder saw the {make.words(1)}", "idx": row * 2 + number,
                    **({} if unlabelled else {"answers": [{"start": start, "end": start + len(answer) - 1,
                                                           "text": answer}]})})
    return {"source": "tiny", "passage": {"text": text, "entities": entities}, "idx": row, "qas": qas}


def _race(folder: Path, make: Maker, rows: int) -> None:
    for split in ("train", "dev", "test"):
        for level in ("high", "middle"):
            (folder / split / level).mkdir(parents=True, exist_ok=True)
            for row in range(rows):
                questions = ["What was it?", "It was a   _  ."][: 1 + row % 2]
                answers = ["ABCD"[int(make.rng.integers(4))] for _ in questions]
                options = [[make.sentence("ABCD"[option] == answer) for option in range(4)]
                           for answer in answers]
                record = {"article": f"{make.sentence()}\n{make.sentence()}", "questions": questions,
                          "options": options, "answers": answers, "id": f"{level}{row + 7}.txt"}
                (folder / split / level / f"{row + 7}.txt").write_text(json.dumps(record) + "\n",
                                                                       encoding="utf-8")


_SENTENCES = ("sentence1", "sentence2")
_STS = ("index", "genre", "filename", "year", "old_index", "source1", "source2", *_SENTENCES)
_MNLI = ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
         "sentence1_parse", "sentence2_parse", *_SENTENCES)
_MNLI_FILES = {"dev": ("dev_matched.tsv", "dev_mismatched.tsv"),
               "test": ("test_matched.tsv", "test_mismatched.tsv")}
_NLI = ("entailment", "not_entailment")
_MNLI_BUILDER = _table((*_MNLI, "label1", "gold_label"), _MNLI, ("entailment", "neutral", "contradiction"),
                       names=_MNLI_FILES)

BUILDERS: Dict[str, Builder] = {"CoLA": _cola, "SST-2": _table(("sentence", "label"), ("index", "sentence"),
                                                               (0, 1)),
                                "MRPC": _table(("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                                               ("index", "#1 ID", "#2 ID", "#1 String", "#2 String"), (0, 1),
                                               bom="\ufeff"), "STS-B": _table((*_STS, "score"), _STS,
                                                                              ("0.000", "1.25", "3.800",
                                                                               "5.000")),
                                "QQP": _table(("id", "qid1", "qid2", "question1", "question2",
                                               "is_duplicate"), ("id", "question1", "question2"), (0, 1)),
                                "MNLI-m": _MNLI_BUILDER, "MNLI-mm": _MNLI_BUILDER,
                                "QNLI": _table(("index", "question", "sentence", "label"),
                                               ("index", "question", "sentence"), _NLI),
                                "RTE": _table(("index", *_SENTENCES, "label"), ("index", *_SENTENCES), _NLI),
                                "WNLI": _table(("index", *_SENTENCES, "label"), ("index", *_SENTENCES),
                                               (0, 1)), "AX": _table((), ("index", *_SENTENCES), (0,),
                                                                     names={"train": (), "dev": (),
                                                                            "test": ("diagnostic.tsv",)}),
                                "BoolQ": _records(_pair(("question", "passage"), (True, False))),
                                "CB": _records(_pair(("premise", "hypothesis"),
                                                     ("entailment", "contradiction", "neutral"))),
                                "COPA": _records(_copa), "MultiRC": _records(_multirc),
                                "ReCoRD": _records(_record),
                                "SuperGLUE-RTE": _records(_pair(("premise", "hypothesis"), _NLI)),
                                "WiC": _records(_wic), "WSC": _records(_wsc),
                                "AX-b": _records(_pair(_SENTENCES, _NLI, str, {"logic": "Negation"}),
                                                 {"test": "AX-b"}),
                                "AX-g": _records(_pair(("premise", "hypothesis"), _NLI), {"test": "AX-g"}),
                                "RACE-M": _race, "RACE-H": _race, "RACE": _race,
                                "Embedded": _table(("sentence", "label"), ("sentence", "label"), (0, 1)),}


def make_task(name: str, folder: Path, rows: int = 6, seed: int = 0) -> Path:
    """Write the official files of task ``name`` into ``folder`` (all its splits, ``rows`` rows or passages
    each)."""
    BUILDERS[name](folder, Maker(seed), rows)
    return folder
