"""The vocabulary of the published models, on disk or downloaded, as a ``gluonnlp.Vocab``."""
from __future__ import annotations

import logging
from typing import Any, Optional, Sequence

from bort.architecture import ROBERTA_VOCAB_SIZE
from bort.checkpoints.catalogue import DATASET, GLUON, QUICK, folders, missing, offline
from bort.downloads.http import DownloadError, fetch, mirrored
from bort.errors import BortError
from bort.files import PathLike
from bort.text.tokenizers.gluonnlp_vocab import read_tokens, vocab_of
from bort.text.tokenizers.loading import find_tokenizer_files, load_tokenizer

logger = logging.getLogger("bort.checkpoints")

FAIRSEQ = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe"
MAX_FILE_BYTES = 16 << 20
FILES = {  # fairseq's three files are the vocabulary; their SHA-256
    "dict.txt": "2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def find_or_fetch_vocabulary(root: Optional[PathLike], mirrors: Sequence[str]) -> Any:
    """RoBERTa's vocabulary as a ``gluonnlp.Vocab``, downloaded first if it has to be.

    Args:
        root, mirrors: as for :func:`bort.checkpoints.published.get_model`.

    Raises:
        BortError: it is neither on disk nor downloadable.
    """
    for folder in folders(root):
        for path in sorted(folder.glob(f"{DATASET}-*.vocab")):
            return vocab_of(read_tokens(path))
        if any(path.name != "tokenizer_config.json" for path in find_tokenizer_files(folder)):
            try:
                tokenizer = load_tokenizer(folder)
            except BortError as error:  # a part of another vocabulary, perhaps
                logger.warning("%s", error)
                continue
            if tokenizer.vocab_size == ROBERTA_VOCAB_SIZE:
                return vocab_of(tokenizer)
    target, failures = folders(root)[0], [offline()]
    if not offline():
        try:
            for name, checksum in FILES.items():
                fetch(mirrored(f"{FAIRSEQ}/{name}", mirrors), target / name, checksum,
                      QUICK.at_most(MAX_FILE_BYTES))
            return vocab_of(load_tokenizer(target))
        except DownloadError as error:
            failures = error.failures
    raise missing("RoBERTa's vocabulary", [f"{DATASET}-2b804f8f.vocab, or {', '.join(FILES)} together"],
                  folders(root), [f"{GLUON}/dataset/vocab/{DATASET}-2b804f8f.zip",
                                  *(f"{FAIRSEQ}/{name}" for name in FILES)], failures)
