"""The README.md of an exported model, out of its own records and nothing else."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from bort.architecture import Architecture
from bort.errors import BortError
from bort.json_files import read_json

CARD_FILE = "README.md"
SIGNATURE = "Written by `python -m bort.huggingface export`."
RESULTS_FILE = "results.json"
_OURS = frozenset(("format", "format_version", "architecture", "vocab_size", "max_length", "dropout",
                   "layer_norm_eps", "mlm_layer_norm_eps", "head", "tokenizer", "sha256", "mlm_head"))
MAX_RECORD = 4000
"""Characters of one record that the card repeats."""


def find_results(folder: Path) -> Optional[Dict[str, Any]]:
    """``results.json`` in the model's folder or in the run's, one above;
    None when there is none that can be read."""
    for path in (folder / RESULTS_FILE, folder.parent / RESULTS_FILE):
        if path.is_file():
            try:
                content = read_json(path, max_bytes=4 << 20)
            except BortError:
                continue
            if isinstance(content, dict):
                return content
    return None


def model_card(config: Mapping[str, Any], classes: str, dtype: str, results: Optional[Mapping[str, Any]],
               notes: Sequence[str], remarks: Sequence[str] = ()) -> str:
    """The card's text.

    Args:
        config: the model folder's ``config.json``.
        classes: the transformers class that loads the model.
        dtype: of the exported file.
        results: the run's ``results.json``.
        notes: what the export left out or could not express.
        remarks: what a user of the folder has to know.
    """
    architecture = Architecture.from_dict(config["architecture"])
    has_tokenizer = isinstance(config.get("tokenizer"), Mapping)
    no_pooler = ", add_pooling_layer=False" if classes.endswith("Model") and not config.get("pooler") else ""
    head = config.get("head") or {}
    counts = architecture.parameters(config["vocab_size"], config["max_length"], config.get("token_types", 0))
    tags = ["bort", "text-classification" if head else "fill-mask" if classes.endswith("MaskedLM")
            else "feature-extraction"]
    lines = ["---", "library_name: transformers", f"pipeline_tag: {tags[1]}", "tags:",
             *(f"- {tag}" for tag in tags), "---", "", f"# A {architecture.display} encoder", "",
             f"{SIGNATURE} To load it:", "", "```python",
             f"from transformers import AutoTokenizer, {classes}", "",
             f'model = {classes}.from_pretrained("this folder"{no_pooler})',
             *(['tokenizer = AutoTokenizer.from_pretrained("this folder")'] if has_tokenizer else []), "```",
             "", "| | |", "|---|---|", f"| layers, heads, hidden, intermediate | {architecture} |",
             f"| vocabulary, positions | {config['vocab_size']}, {config['max_length']} |",
             f"| parameters | {counts['body']:,} (embeddings {counts['embeddings']:,}, encoder "
             f"{counts['encoder']:,}); MLM head {counts['mlm_head']:,} |", f"| stored as | {dtype} |"]
    if has_tokenizer:
        tokenizer = config["tokenizer"]
        lines.append(f"| tokenizer | {_cell(tokenizer.get('kind'))}, fingerprint "
                     f"`{_cell(str(tokenizer.get('fingerprint'))[:16])}` |")
    if config.get("sha256"):
        lines.append(f"| made from `model.params` with SHA-256 | `{_cell(config['sha256'])}` |")
    if head:
        lines.append(f"| head | {_cell(head.get('kind'))}, {head.get('num_outputs')} outputs |")
        lines.append(f"| task | {_cell(head.get('task') or 'not recorded')} |")
        labels = head.get("labels")
        lines.append(f"| labels | {_cell(', '.join(map(str, labels)) if labels else 'not recorded')} |")
    lines += ["", "## Inputs", "",
              "`<s> A </s>`, or `<s> A </s> B </s>` with one `</s>` between the texts of a pair (RoBERTa "
              "puts two)." + (" The tokenizer here does so by itself." if has_tokenizer else "")
              + " There are no token types."]
    lines += _results(results)
    lines += _records(config)
    if remarks:
        lines += ["", "## Before you use it", "", *(f"- {remark}" for remark in remarks)]
    if notes:
        lines += ["", "## What this export does not hold", "", *(f"- {note}" for note in notes)]
    lines += ["", "## Paper", "",
              "Adrian de Wynter and Daniel J. Perry, *Optimal Subarchitecture Extraction for BERT*, 2020, "
              "arXiv:2010.10499.", ""]
    # A label may hold a lone surrogate, which has no UTF-8.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


def _cell(value: Any) -> str:
    """A value inside a table: on one line, without what would end the cell."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")[:300]


def _results(results: Optional[Mapping[str, Any]]) -> List[str]:
    """The metrics of ``results.json`` as a table, whatever splits and names they have."""
    rows = []
    results = results or {}
    metrics = results.get("metrics")
    for split, values in metrics.items() if isinstance(metrics, Mapping) else ():
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                rows.append(f"| {_cell(split)} | {_cell(name)} | {value:.4f} |")
    if not rows:
        return ["", "## Results", "", "The model's folder holds no results."]
    known = [key for key in ("task", "seed", "seeds") if results.get(key) is not None]
    about = ", ".join(f"{key} {_cell(results[key])}" for key in known)
    return ["", "## Results", "", f"From the run's own `{RESULTS_FILE}`{f' ({about})' if about else ''}:", "",
            "| split | metric | value |", "|---|---|---|", *rows]


def _records(config: Mapping[str, Any]) -> List[str]:
    extra = {key: value for key, value in config.items() if key not in _OURS}
    if not extra:
        return ["", "## Training", "", "The model's folder holds no record of its training."]
    text = json.dumps(extra, indent=2, ensure_ascii=False, default=str).replace("```", "'''")
    if len(text) > MAX_RECORD:
        text = text[:MAX_RECORD] + "\n... (cut; the model folder's config.json has the rest)"
    return ["", "## Training", "", "As recorded in the model folder's `config.json`:", "", "```json", text,
            "```"]
