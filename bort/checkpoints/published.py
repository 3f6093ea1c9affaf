"""``get_model``: published models by name, with GluonNLP's habits."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Sequence, Tuple, Union

from bort.checkpoints import model_folder
from bort.checkpoints.catalogue import DATASET, MODELS, Entry, find_or_fetch
from bort.checkpoints.published_vocabulary import find_or_fetch_vocabulary
from bort.errors import BortError
from bort.files import PathLike
from bort.models import Bert, initialize


def get_model(name: str, dataset_name: Optional[str] = DATASET, vocab: Any = None,
              pretrained: Union[bool, PathLike] = True, ctx: Any = None, root: Optional[PathLike] = None,
              mirrors: Sequence[str] = (), seed: int = 0, dropout: Optional[float] = None,
              use_decoder: bool = True, **ignored: Any) -> Tuple[Bert, Any]:
    """A published model and its vocabulary, as the original release's ``get_bort_model`` gave them.

    Args:
        name: a key of :data:`MODELS`; the numbers of a Bort's are depth, heads, intermediate, hidden.
        dataset_name: only the RoBERTa vocabulary's name (the default) was published for these models.
        vocab: a ``gluonnlp.Vocab`` to use instead.
        pretrained: True finds or downloads the weights, a path loads them from there, False draws
            them from ``seed``.
        ctx: the MXNet context (or list) to place them on.
        root: the folder to look in and to download to, instead of those of :func:`folders`.
        mirrors: addresses of folders to try first; those in ``BORT_MIRRORS`` (separated by commas) come next.
        use_decoder: accepted for compatibility; the MLM head is always there.
        ignored: ``use_pooler`` and ``use_classifier``, of which the release took no notice either.

    Returns:
        ``(Bert, gluonnlp.Vocab)``.

    Raises:
        BortError: an unknown name, or a file that is neither on disk nor downloadable; the message says what
            to put where.
    """
    if name not in MODELS:
        hint = "; python -m bort.huggingface import takes BERT" if name.startswith("bert_") else ""
        raise BortError(f"no model {str(name)!r}; there are {', '.join(MODELS)}{hint}")
    unknown = sorted(set(ignored) - {"use_pooler", "use_classifier"})
    if unknown:
        raise BortError(f"get_model: {', '.join(unknown)} cannot be set; the architecture belongs to the "
                        "name (use bort.models.Bert for another)")
    if dataset_name not in (None, DATASET) and vocab is None:
        raise BortError(f"dataset_name {dataset_name!r}: these models have the vocabulary of {DATASET}")
    entry = MODELS[name]
    vocab = find_or_fetch_vocabulary(root, mirrors) if vocab is None else vocab
    if pretrained is False:
        model = Bert(entry.architecture, len(vocab), dropout=0.1 if dropout is None else dropout,
                     mlm_layer_norm_eps=entry.epsilon)
        initialize(model, seed)
    else:
        path = find_or_fetch(name, root, mirrors) if pretrained is True else Path(pretrained).expanduser()
        model = _load(path, entry, dropout)
    if model.vocab_size != len(vocab):
        raise BortError(f"{name}: the model has {model.vocab_size} ids, the vocabulary {len(vocab)}")
    if ctx is not None:
        model.collect_params().reset_ctx(ctx)
    return model, vocab


def _load(path: Path, entry: Entry, dropout: Optional[float]) -> Bert:
    stored = model_folder.read(path, entry.architecture)
    config = dict(stored.config)
    if stored.located.config is None:
        config["mlm_layer_norm_eps"] = entry.epsilon
    model = model_folder.build(config, str(stored.located.config_file), dropout)
    model_folder.set_parameters(model, stored.arrays, str(path))
    return model.body
