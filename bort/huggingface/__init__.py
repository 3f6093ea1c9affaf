"""Models from Hugging Face's format and into it: ``import_folder``, ``export_folder``,
``python -m bort.huggingface``.

Both are pure conversions: nothing is computed but a change of type, so a round trip is exact, and one tensor
at a time is held. ``names`` holds the one table of names. What has no place on the other side is reported,
never dropped in silence:

* Token types: BERT's two rows are kept, unless ``token_types="fold"`` says that every text is a first one.
  The one row of a Bort's or a RoBERTa's is added to the position embeddings, which is the same function.
* Pooler: carried, though nothing here computes with it; a sequence classifier of BERT keeps it as "pooled"
  head. The next-sentence head is left out.
* Heads of fewer units than the hidden size (networks cut out of a wider one): filled up with heads of zeros,
  which add nothing; cut off again on import.
* Heads without tanh ("linear", "linear_extra"), while transformers' classes have one: exported with
  weights scaled down before and up after it by a power of two, where tanh is the identity to rounding;
  undone on import.
* An MLM head that is missing is drawn from a seed and marked as random; one that was never trained
  is marked too.
"""
from __future__ import annotations

from bort.huggingface.conversion import Report
from bort.huggingface.exporting import export_folder
from bort.huggingface.gluonnlp import import_params
from bort.huggingface.importing import import_folder

__all__ = ["Report", "export_folder", "import_folder", "import_params"]
