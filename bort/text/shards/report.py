"""The report of a preparation: what came in, what was left out, what there is now, and how fast it went."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from bort.errors import BortError
from bort.json_files import read_json
from bort.text.shards.scatter import read_counts

_KEPT = ("documents", "sentences", "words", "characters", "tokens")
_REASONS = {
    "short": "documents with too few words",
    "structured": "structured lines (tables, headings, lists)",
    "garbage": "lines that are not text",
    "unparsable": "wiki pages that could not be parsed",
    "rows": "rows without text",
    "pages": "wiki pages that are no articles",
}


def dropped_in_words(dropped: Mapping[str, int]) -> str:
    """What was left out, for a message."""
    reasons = [f"{_REASONS.get(name, name)} ({number:,})" for name, number in dropped.items() if number]
    return f"left out were {', '.join(reasons)}" if reasons else "there is nothing in it"


def sum_counts(spills: Sequence[Path], reading: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """Totals over all blocks and files, with what was dropped by reason, and the damaged files."""
    total: Counter = Counter()
    for spill in spills:
        total.update(read_counts(spill))
    counts: Dict[str, Any] = {name: total.pop(name, 0) for name in _KEPT}
    for group in reading:
        total.update({"rows": group["rows"], "pages": group["pages"]})
    counts["dropped"] = {name: number for name, number in sorted(total.items()) if number}
    counts["broken_files"] = [name for group in reading for name in group["broken"]]
    return counts


def _peak_megabytes() -> Dict[str, float]:
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    who = {"main_process": resource.RUSAGE_SELF, "largest_worker": resource.RUSAGE_CHILDREN}
    return {name: round(resource.getrusage(which).ru_maxrss / unit, 1) for name, which in who.items()}


def make_report(
    index: Dict[str, Any],
    counts: Dict[str, Any],
    passed: List[str],
    seconds: Dict[str, float],
    read_bytes: int,
    workers: int,
) -> Dict[str, Any]:
    """The content of ``report.json``.

    ``seconds`` by step, bytes read and throughput (megabytes of input and tokens of the whole result per
    second, over all steps but the tokenizer's training) are those of the last run; after an interruption it
    did only a part.
    """
    working = max(1e-9, seconds["scatter"] + seconds["pack"])
    whole = read_bytes == index["inputs"]["bytes"]
    splits = {
        name: {key: split[key] for key in ("sequences", "sentences", "tokens")}
        for name, split in index["splits"].items()
    }
    return {
        "inputs": {**index["inputs"], "passed_over": len(passed), "passed_over_names": passed[:20]},
        **counts,
        "splits": splits,
        "vocab_size": index["vocab_size"],
        "workers": workers,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "megabytes_per_second": round(read_bytes / working / 1e6, 3) if whole else None,
        "tokens_per_second": round(counts["tokens"] / working) if whole else None,
        "peak_memory_mb": _peak_megabytes(),
    }


def read_report(path: Path) -> Dict[str, Any]:
    """A finished preparation's ``report.json``. Raises BortError when it is damaged."""
    report = read_json(path)
    try:
        format_report(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BortError(f"{path}: damaged; remove its folder and prepare the shards again") from error
    return report


def format_report(report: Dict[str, Any]) -> str:
    """The report as a table for people."""
    rows = [("files", report["inputs"]["files"]), ("bytes", report["inputs"]["bytes"])]
    rows += [(name, report[name]) for name in _KEPT]
    rows += [(f"left out: {_REASONS.get(name, name)}", number) for name, number in report["dropped"].items()]
    rows += (
        [("files passed over", report["inputs"]["passed_over"])] if report["inputs"]["passed_over"] else []
    )
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {number:>15,}" for name, number in rows]
    lines += ["", f"{'split':<8}{'sequences':>12}{'sentences':>14}{'tokens':>16}"]
    lines += [
        f"{name:<8}{split['sequences']:>12,}{split['sentences']:>14,}{split['tokens']:>16,}"
        for name, split in report["splits"].items()
    ]
    lines += [f"damaged, read in part: {name}" for name in report["broken_files"]]
    lines.append("")
    if report["megabytes_per_second"] is not None:
        lines.append(
            f"{report['megabytes_per_second']:.2f} MB/s, {report['tokens_per_second']:,} tokens/s, "
            f"{report['workers']} workers"
        )
    memory = report["peak_memory_mb"]
    if memory:
        lines.append(
            f"peak memory: {memory['main_process']:.0f} MB in the main process, "
            f"{memory['largest_worker']:.0f} MB in the largest worker"
        )
    return "\n".join(lines)
