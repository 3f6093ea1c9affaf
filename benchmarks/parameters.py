"""Table 2: parameter counts as the papers print them, by Lemma 2, and exactly.

    python -m benchmarks.parameters

Counts need no machine: nothing is measured, and the whole takes a second.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, List, Optional

from benchmarks.harness.records import markdown_table, record
from bort.architecture import PRESETS, ROBERTA_VOCAB_SIZE
from bort.errors import run_command
from bort.paper import TABLE_2_PRESETS

NOTES = (
    "exact counts the network this project builds: words, 512 positions, LayerNorms, D layers and the "
    "MLM head, whose matrix is the word embedding's and counts once. No token types and no pooler, "
    "which BERT has and RoBERTa does not use.",
    "Lemma 2 is equation 13 with S = 514 for the RoBERTa vocabulary and S = 512 otherwise.",
    "The paper's 56.14M for Bort does not follow from its Lemma 2, which gives what the released file "
    "holds to 0.1%.",
    "The paper gives A2 and A3 35.20M. They differ from Bort in I alone, which is 2.1M parameters by "
    "its own lemma, not 20.9M.",
    "The paper says the encoder of Bort is 5.5% the size of BERT-large's; exactly it is the share in "
    "the last column.",
    "BERT-Mini and BERT-Small are printed with I = 2048 in Table 2, but their published counts are "
    "those of I = 1024 (BERT-Mini) and I = 2048 (BERT-Small).",
)


def rows() -> List[Dict[str, Any]]:
    """One row a network of Table 2, then A2, A3 and the second released one; counts in millions."""
    large = PRESETS["bert-large"].architecture.parameters(PRESETS["bert-large"].vocab_size)["encoder"]
    table = []
    for name in (*TABLE_2_PRESETS, "a2", "a3", "bort_2_16_512_1024"):
        preset = PRESETS[name]
        counts = preset.architecture.parameters(preset.vocab_size)
        positions = 514 if preset.vocab_size == ROBERTA_VOCAB_SIZE else 512
        table.append(
            {
                "network": preset.label,
                "⟨D,A,H,I⟩": preset.architecture.display,
                "V": preset.vocab_size,
                "paper (M)": preset.paper_millions,
                "Lemma 2 (M)": round(
                    preset.architecture.lemma2_parameters(preset.vocab_size, positions) / 1e6, 2
                ),
                "exact (M)": round(counts["total"] / 1e6, 2),
                "embeddings (M)": round(counts["embeddings"] / 1e6, 2),
                "encoder (M)": round(counts["encoder"] / 1e6, 2),
                "MLM head (M)": round(counts["mlm_head"] / 1e6, 2),
                "encoder / BERT-large's": f"{counts['encoder'] / large:.1%}",
            }
        )
    return table


def main(argv: Optional[List[str]] = None) -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    table = rows()
    print(markdown_table(table))
    print(f"recorded in {record('parameters', table, notes=NOTES, title='Table 2: parameters', argv=argv)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
