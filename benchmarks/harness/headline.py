"""README.md's one table: what the paper says and what was measured here, each figure taken from a record."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple

from benchmarks.harness.records import markdown_table

Records = Mapping[str, Mapping[str, Any]]
"""The JSON records of ``benchmarks/results`` by name."""


class Claim(NamedTuple):
    """A line of the table; ``here`` takes its figures from the record ``record``."""

    what: str
    paper: str
    record: str
    here: Callable[[Any], str]


def _row(rows: Any, **wanted: Any) -> Mapping[str, Any]:
    """The first row with these values."""
    return next(row for row in rows if all(row.get(key) == value for key, value in wanted.items()))


def _encoder_share(rows: Any) -> str:
    return str(rows[0]["encoder / BERT-large's"])


def _latency(tables: Any) -> str:
    targets = tables["Targets"]
    mixed = _row(targets, target="bort in mxnet beside bert-base in gluonnlp")["measured"]
    same = _row(tables["Times slower than bort in the same engine"], architecture="bert-base")["mxnet"]
    return f"{mixed:.1f} times (both in this engine: {same:.1f})"


def _rank(tables: Any) -> str:
    row = next(iter(tables.values()))[0]
    rank = row["Bort's rank"].split(",")[0]
    return f"{rank} of the {row['of']} tuples trained (3 steps, as there)"


def _distillation(tables: Any) -> str:
    step = next(row for row in tables["Table 3"] if "at step" in row[""])
    return f"step {step['Distillation, here']:,.0f} instead of {step['Pre-training, here']:,.0f}"


def _agora(tables: Any) -> str:
    rows = tables["Differences of medians"]
    column = "Agora - distillation, equal compute"
    above = [row["task"] for row in rows if row[column] > 0 and row["Agora - plain, equal compute"] > 0]
    best = max(rows, key=lambda row: row[column])
    return (
        f"above both on {len(above)} of {len(rows)} tasks ({', '.join(above)}); "
        f"at most {best[column]:+.1f} above distillation"
    )


def _stream(rows: Any) -> str:
    ours, peer = _row(rows, engine="onnx-int8"), _row(rows, engine="pipeline-32")
    return f"{ours['samples/s']:.0f} sentences/s in int8, transformers' pipeline {peer['samples/s']:.0f}"


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
    Claim("BERT-base slower than Bort on a CPU (GluonNLP's beside ours)", "7.9 times", "latency", _latency),
    Claim("Bort's rank in the search", "1 of 300", "search", _rank),
    Claim(
        "distillation as accurate as the masked LM's end",
        "step 17,000 instead of 22,000",
        "pretraining",
        _distillation,
    ),
    Claim("Agora beside plain fine-tuning and distillation at equal compute", "–", "agora", _agora),
    Claim("a stream of SST-2's sentences through Bort", "–", "streaming", _stream),
    Claim("training Bort", "–", "throughput", _throughput),
    Claim("to Hugging Face, back and there again", "–", "conversion", _conversion),
)


def headline(records: Records) -> str:
    """The table as Markdown: the lines of ``showcase``'s own headline first, then :data:`CLAIMS`."""
    rows: List[Dict[str, Any]] = []
    if "showcase" in records:
        rows += records["showcase"]["rows"].get("Headline", [])
    rows += [
        {
            "what": claim.what,
            "paper": claim.paper,
            "here": claim.here(records[claim.record]["rows"]),
            "recorded in": f"[{claim.record}](benchmarks/results/{claim.record}.md)",
        }
        for claim in CLAIMS
        if claim.record in records
    ]
    return markdown_table(rows, ("what", "paper", "here", "recorded in")) + "\n"
