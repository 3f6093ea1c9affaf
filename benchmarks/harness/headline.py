"""README.md's one table: what the paper says and what was measured here, each figure taken from a record."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from benchmarks.harness.records import markdown_table
from benchmarks.harness.shapes import number_format

CPU_KINDS = ("amx", "avx512", "avx2")
Records = Mapping[str, Mapping[str, Any]]
"""The JSON records of ``benchmarks/results`` by name."""


class Claim(NamedTuple):
    """A line of the table; ``here`` takes its figures from the newest record named ``record`` or
    ``record-KIND`` of a CPU that has them all, or so named after ``also``."""

    what: str
    paper: str
    record: str
    here: Callable[[Any], str]
    also: str = ""


def _row(rows: Any, **wanted: Any) -> Mapping[str, Any]:
    """The first row with these values."""
    return next(row for row in rows if all(row.get(key) == value for key, value in wanted.items()))


def _encoder_share(rows: Any) -> str:
    return str(rows[0]["encoder / BERT-large's"])


def _latency(tables: Any) -> str:
    times = {row["architecture"]: row for row in tables["Table 1: milliseconds for 1 x 512 tokens"]}
    ratios = _row(tables["Times slower than bort in the same engine"], architecture="bert-base")
    engine = "openvino" if ratios.get("openvino") else "mxnet"
    bort, base = next(row for name, row in times.items() if "Bort" in name), times["BERT-base"]
    mixed = base["gluonnlp"] / bort[engine]
    return f"{mixed:.1f} times (both in {engine}: {ratios[engine]:.1f})"


def _rank(tables: Any) -> str:
    row = next(iter(tables.values()))[0]
    rank = row["Bort's rank"].split(",")[0]
    return f"{rank} of the {row['of']} tuples trained (3 steps, as there)"


def _distillation(tables: Any) -> str:
    step = next(row for row in tables["Table 3"] if "at step" in row[""])
    return f"step {step['Distillation, here']:,.0f} instead of {step['Pre-training, here']:,.0f}"


def _fastest(tables: Any) -> str:
    rows = tables["Ours beside the best peer of the same accuracy"]
    found = [
        f"{row['ours is faster by']:.2f} times ({row['accuracy']})"
        for row in rows
        if row["batch x length"] == "1 x 512"
    ]
    if not found:
        raise KeyError("1 x 512")
    return ", ".join(found)


def _stream(tables: Any) -> str:
    rows = tables["Engines"] if isinstance(tables, dict) else tables
    ours = [row for row in rows if row["what"].startswith("bort.predict")]
    best, peer = max(ours, key=lambda row: row["samples/s"]), _row(rows, engine="pipeline-32")
    kind = number_format(best["engine"])
    return f"{best['samples/s']:.0f} sentences/s in {kind}, transformers' pipeline {peer['samples/s']:.0f}"


def _throughput(tables: Any) -> str:
    rows = [row for row in tables["Steps"] if row["part"] == "bort" and row["step"] == "masked LM"]
    speed = {row["engine"]: row["tokens/s"] for row in rows}
    return (
        f"{speed['ours']} tokens/s, PyTorch {speed['PyTorch, fused AdamW']} tuned and "
        f"{speed['PyTorch as it comes, fused AdamW']} as it comes"
    )


def _conversion(rows: Any) -> str:
    same = [row for row in rows if row["conversion"] == "export float32 again"]
    return (
        "the same file, bit for bit" if all("the same file" in row["checked"] for row in same) else "differs"
    )


CLAIMS = (
    Claim("Bort's encoder, share of BERT-large's parameters", "5.5%", "parameters", _encoder_share),
    Claim(
        "BERT-base slower than Bort on a CPU (GluonNLP's beside ours)",
        "7.9 times",
        "latency-paper",
        _latency,
        "latency",
    ),
    Claim("faster than the best other engine, 1 x 512", "–", "latency", _fastest),
    Claim("Bort's rank in the search", "1 of 300", "search", _rank),
    Claim(
        "distillation as accurate as the masked LM's end",
        "step 17,000 instead of 22,000",
        "pretraining",
        _distillation,
    ),
    Claim("a stream of SST-2's sentences through Bort", "–", "streaming", _stream),
    Claim("the same through MiniLM", "–", "streaming-minilm", _stream),
    Claim("training Bort", "–", "throughput", _throughput),
    Claim("to Hugging Face, back and there again", "–", "conversion", _conversion),
)


def newest(records: Records, claim: Claim) -> Optional[Tuple[str, str]]:
    """The name of the newest record that has the figures of a claim, and what they say."""
    names = [
        name
        for record in (claim.record, claim.also)
        for name in (record, *(f"{record}-{kind}" for kind in CPU_KINDS))
    ]
    known = [name for name in names if name in records]
    for name in sorted(known, key=lambda name: str(records[name]["date"]), reverse=True):
        with contextlib.suppress(StopIteration, KeyError, TypeError):  # another choice of engines or networks
            return name, claim.here(records[name]["rows"])
    return None


def headline(records: Records) -> str:
    """The table as Markdown: the lines of ``showcase``'s own headline first, then :data:`CLAIMS`."""
    rows: List[Dict[str, Any]] = []
    if "showcase" in records:
        rows += records["showcase"]["rows"].get("Headline", [])
    for claim in CLAIMS:
        found = newest(records, claim)
        if found is not None:
            name, here = found
            link = f"[{name}](benchmarks/results/{name}.md)"
            rows.append({"what": claim.what, "paper": claim.paper, "here": here, "recorded in": link})
    return markdown_table(rows, ("what", "paper", "here", "recorded in")) + "\n"
