"""The folder a conversion writes to: what somebody else put there stays."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from bort.errors import BortError
from bort.text.tokenizers.loading import find_tokenizer_files


def refuse_foreign(folder: Path, written: Sequence[str], with_tokenizer: bool, own: bool) -> None:
    """Refuse to write over files that no earlier conversion of this project wrote.

    Args:
        folder: the folder to write to; it may be missing.
        written: names of the files that are going to be written, without a tokenizer's.
        with_tokenizer: a tokenizer's files are going to be written too.
        own: what is there is an earlier conversion's, and may be replaced.

    Raises:
        BortError: there are such files; they are named.
    """
    if own or not folder.is_dir():
        return
    there = [name for name in written if (folder / name).exists()]
    if with_tokenizer:
        there += sorted(path.name for path in find_tokenizer_files(folder) if path.name not in there)
    if there:
        raise BortError(f"{folder}: holds {', '.join(there[:5])} already, which this command did not write; "
                        "choose another folder, or move what is there away")
