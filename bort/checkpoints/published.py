"""``get_model``: published models by name, with GluonNLP's habits: looked for on disk first, then on mirrors.

The hosts these models were published on may be gone, so every file can also be put in place by hand; the
error of a missing one says which file, which folders, and where it used to be.
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from bort.architecture import ROBERTA_VOCAB_SIZE, Architecture, parse
from bort.checkpoints import model_folder
from bort.downloads.archives import extract
from bort.downloads.http import Terms, fetch, mirrored
from bort.errors import BortError
from bort.files import PathLike, read_json
from bort.models import Bert, Classifier, initialize
from bort.text.tokenizers.base import Tokenizer
from bort.text.tokenizers.loading import find_tokenizer_files, load_tokenizer

logger = logging.getLogger("bort.checkpoints.published")

DATASET = "openwebtext_ccnews_stories_books_cased"
GLUON = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon"
FAIRSEQ = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe"
OFFLINE_VARIABLE = "BORT_OFFLINE"
MAX_MODEL_BYTES = 4 << 30


class Entry(NamedTuple):
    """A published model: its architecture, other file names it goes by, where it was, and its SHA-1 where
    known."""

    architecture: Architecture
    aliases: Tuple[str, ...]
    url: Optional[str]
    sha1: Optional[str]
    epsilon: float


def _roberta(name: str, preset: str, sha1: str) -> Entry:
    # fairseq's epsilon is 1e-5 everywhere, in the MLM head too.
    return Entry(parse(preset), (), f"{GLUON}/models/{name}_{DATASET}-{sha1[:8]}.zip", sha1, 1e-5)


MODELS: Dict[str, Entry] = {"bort_4_8_768_1024": Entry(parse("bort_4_8_768_1024"), ("bort",),
                                                       "https://alexa-saif-bort.s3.amazonaws.com/bort.params",
                                                       None, 1e-12),
                            "bort_2_16_512_1024": Entry(parse("bort_2_16_512_1024"), (), None, None, 1e-12),
                            "roberta_12_768_12": _roberta("roberta_12_768_12", "roberta-base",
                                                          "5cf21fcddb5ae1a4c21c61201643460c9d65d3b0"),
                            "roberta_24_1024_16": _roberta("roberta_24_1024_16", "roberta-large",
                                                           "d1b7163e9628e2fd51c9a9f3a0dc519d4fc24add"),}
VOCABULARY_FILES = {  # fairseq's three files are the vocabulary; their SHA-256
    "dict.txt": "2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def folders(root: Optional[PathLike] = None) -> List[Path]:
    """Where models are looked for: ``root`` if given, else ``$BORT_HOME``, its ``models``, and GluonNLP's
    folder."""
    if root is not None:
        return [Path(root).expanduser()]
    home = os.environ.get("BORT_HOME")
    own = [Path(home).expanduser(), Path(home).expanduser() / "models"] if home else []
    return [*own, Path(os.environ.get("MXNET_HOME") or "~/.mxnet").expanduser() / "models"]


def get_model(name: str, dataset_name: Optional[str] = DATASET, vocab: Any = None,
              pretrained: Union[bool, PathLike] = True, ctx: Any = None, root: Optional[PathLike] = None,
              mirrors: Sequence[str] = (), seed: int = 0, dropout: Optional[float] = None,
              use_decoder: bool = True, **ignored: Any) -> Tuple[Bert, Any]:
    """A published model and its vocabulary, as the original release's ``get_bort_model`` gave them.

    Args:
        name: a key of :data:`MODELS`; the numbers of a Bort's are depth, heads, intermediate, hidden.
        dataset_name: only the RoBERTa vocabulary's name (the default) was published for these models.
        vocab: a ``gluonnlp.Vocab`` to use instead.
        pretrained: True finds or downloads the weights, a path loads them from there, False draws them from
            ``seed``.
        ctx: the MXNet context (or list) to place them on.
        root: the folder to look in and to download to, instead of those of :func:`folders`.
        mirrors: addresses of folders to try first; those in ``BORT_MIRRORS`` (separated by commas) come next.
        use_decoder: accepted for compatibility; the MLM head is always there.
        ignored: ``use_pooler`` and ``use_classifier``, of which the release took no notice either.

    Returns:
        ``(Bert, gluonnlp.Vocab)``.

    Raises:
        BortError: an unknown name, or a file that is neither on disk nor to be had; the message says what to
            put where.
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
    vocab = _vocabulary(root, mirrors) if vocab is None else vocab
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
    return model.bort if isinstance(model, Classifier) else model


def candidates(name: str, folder: Path) -> Iterator[Path]:
    """Where a model would be in ``folder``, best first: a model folder, or a ``.params`` file by one of its
    names."""
    for own in (name, *MODELS[name].aliases):
        yield folder / own
        yield folder / f"{own}.params"
    yield from sorted(folder.glob(f"{name}_{DATASET}*.params"))


def find(name: str, root: Optional[PathLike] = None) -> Optional[Path]:
    """The model ``name`` on disk, or None.

    Raises:
        BortError: the file there is not the one its name or its checksum file announces.
    """
    for folder in folders(root):
        for path in candidates(name, folder):
            if (path / model_folder.CONFIG_FILE).is_file():
                return path
            if path.is_file():
                _check(path, MODELS[name])
                return path
    return None


def _check(path: Path, entry: Entry) -> None:
    """GluonNLP's file names end in the first digits of the file's SHA-1; ``FILE.sha256`` may lie beside any
    file."""
    beside = path.with_name(path.name + ".sha256")
    if beside.is_file():
        expected = beside.read_text(encoding="ascii", errors="replace").split()[:1]
        if not expected or not re.fullmatch(r"[0-9a-fA-F]{64}", expected[0]):
            raise BortError(f"{beside}: holds no SHA-256")
        _compare(path, "sha256", expected[0].lower())
    short = re.search(r"-([0-9a-f]{8})\.params$", path.name)
    if short or path.name.startswith("roberta_"):
        _compare(path, "sha1", short.group(1) if short else entry.sha1 or "")


def _compare(path: Path, kind: str, expected: str) -> None:
    digest = hashlib.new(kind)
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    if not digest.hexdigest().startswith(expected):
        raise BortError(f"{path}: its {kind.upper()} is {digest.hexdigest()}, not {expected}...: the file is "
                        "damaged or another; remove it")


def find_or_fetch(name: str, root: Optional[PathLike] = None, mirrors: Sequence[str] = ()) -> Path:
    """The model ``name`` on disk, downloaded first if it has to be.

    A download is checked by the SHA-256 that ``$BORT_HOME/checksums.json`` has for its file name (an object
    of name: hexadecimal), by the SHA-1 that GluonNLP published, or, where there is neither, reported for the
    user to check.

    Raises:
        BortError: it is neither on disk nor to be had.
    """
    found = find(name, root)
    if found is not None:
        return found
    entry, target = MODELS[name], folders(root)[0]
    short = f"-{entry.sha1[:8]}" if entry.sha1 else ""
    own = f"{entry.aliases[0] if entry.aliases else name + '_' + DATASET + short}.params"
    # A mirror may have the file itself, or the archive that it was published in.
    addresses = [*mirrored(f"https://none/{own}", mirrors)[:-1],
                 *(mirrored(entry.url, mirrors) if entry.url else [])]
    addresses = list(dict.fromkeys(addresses))
    failures = _fetch_first(addresses, target / own, entry)
    if failures is None:
        return target / own
    python = f"python -m bort.huggingface import FOLDER {target / name}"
    other = ("amazon/bort" if name == "bort_4_8_768_1024" else "FacebookAI/roberta-base" if "_12_" in name
             else "FacebookAI/roberta-large" if name.startswith("roberta") else None)
    sources = [entry.url or "(it was never published by itself)"]
    sources += [f"https://huggingface.co/{other} (then: {python})"] if other else []
    raise BortError(_missing(name, [own],
                             [path for folder in folders(root) for path in (folder / name, folder / own)],
                             sources, failures))


def _checksums() -> Dict[str, str]:
    home = os.environ.get("BORT_HOME")
    path = Path(home).expanduser() / "checksums.json" if home else None
    if path is None or not path.is_file():
        return {}
    content = read_json(path, max_bytes=1 << 20)
    if not isinstance(content, dict) or not all(
            isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value) for value in content.values()):
        raise BortError(f"{path}: expected an object of file names and their SHA-256")
    return content


def _fetch_first(addresses: Sequence[str], target: Path, entry: Entry) -> Optional[str]:
    """Download ``target`` from the first address that has it; None, or what went wrong at each."""
    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        return f"{OFFLINE_VARIABLE} is set, so nothing was downloaded"
    if not addresses:
        return "there is no address to download it from (BORT_MIRRORS names folders to try)"
    failures: List[str] = []
    for address in addresses:
        packed = target.with_name(address.rsplit("/", 1)[-1]) if address.endswith(".zip") else target
        try:
            fetch([address], packed, None if packed != target else _checksums().get(target.name),
                  Terms(MAX_MODEL_BYTES, timeout=20, wait=0.2, progress=False))
            if packed != target:
                _unpack(packed, target)
            if entry.sha1:
                _compare(target, "sha1", entry.sha1)
            elif target.name not in _checksums():
                logger.warning("%s: no checksum is known for it; python -m bort.checkpoints verify "
                               "--released tells whether it is Bort", target)
            return None
        except BortError as error:
            failures.append(str(error).split("\nFetch it")[0])
            for path in (packed, target):
                if path.is_file():
                    path.unlink()
    return "\n".join(failures)


def _unpack(packed: Path, target: Path) -> None:
    folder = extract(packed, packed.with_suffix(".unpacked"))
    try:
        found = sorted(folder.rglob("*.params"))
        if len(found) != 1:
            raise BortError(f"{packed}: holds {len(found)} .params files instead of one")
        os.replace(found[0], target)
    finally:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        folder.rmdir()
        packed.unlink()


def _missing(what: str, files: Sequence[str], places: Sequence[Path], sources: Sequence[str],
             failures: str) -> str:
    lines = [f"{what} is not on this machine and could not be downloaded.", f"Needed: {', '.join(files)}",
             "Looked for:", *(f"  {place}" for place in places),
             "To be had from, or from a colleague's machine:", *(f"  {source}" for source in sources),
             "What happened:", *(f"  {line}" for line in failures.split("\n"))]
    return "\n".join(lines)


def _vocabulary(root: Optional[PathLike], mirrors: Sequence[str]) -> Any:
    """The RoBERTa vocabulary on disk, downloaded first if it has to be, as a ``gluonnlp.Vocab``."""
    for folder in folders(root):
        for path in sorted(folder.glob(f"{DATASET}-*.vocab")):
            return vocab_of(_gluonnlp_tokens(path))
        if any(path.name != "tokenizer_config.json" for path in find_tokenizer_files(folder)):
            try:
                tokenizer = load_tokenizer(folder)
            except BortError as error:  # a part of another vocabulary, perhaps
                logger.warning("%s", error)
                continue
            if tokenizer.vocab_size == ROBERTA_VOCAB_SIZE:
                return vocab_of(tokenizer)
    target = folders(root)[0]
    failures = []
    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        failures.append(f"{OFFLINE_VARIABLE} is set, so nothing was downloaded")
    else:
        try:
            for name, checksum in VOCABULARY_FILES.items():
                fetch(mirrored(f"{FAIRSEQ}/{name}", mirrors), target / name, checksum,
                      Terms(16 << 20, timeout=20, wait=0.2, progress=False))
            return vocab_of(load_tokenizer(target))
        except BortError as error:
            failures.append(str(error).split("\nFetch it")[0])
    raise BortError(_missing("RoBERTa's vocabulary",
                             [f"{DATASET}-2b804f8f.vocab, or {', '.join(VOCABULARY_FILES)} together"],
                             folders(root), [f"{GLUON}/dataset/vocab/{DATASET}-2b804f8f.zip",
                                             *(f"{FAIRSEQ}/{name}" for name in VOCABULARY_FILES)],
                             "\n".join(failures)))


def _gluonnlp_tokens(path: Path) -> List[str]:
    content = read_json(path)
    tokens = content.get("idx_to_token") if isinstance(content, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or (
            len(set(tokens)) != len(tokens)):
        raise BortError(f"{path}: not a GluonNLP vocabulary; the file is damaged")
    return tokens


def vocab_of(tokenizer: Union[Tokenizer, Sequence[str]]) -> Any:
    """A ``gluonnlp.Vocab`` of a tokenizer's tokens (or of RoBERTa's tokens), in the order of their ids.

    Raises:
        BortError: GluonNLP is not installed.
    """
    try:
        import gluonnlp
    except ImportError as error:
        raise BortError("get_model returns a gluonnlp.Vocab: pip install gluonnlp==0.10.0. bort.load and "
                        "bort.load_tokenizer need no GluonNLP") from error
    names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    if isinstance(tokenizer, Tokenizer):
        names = tokenizer.names
        tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.vocab_size)]
    else:
        tokens = list(tokenizer)
    members = {"mask_token": names["mask"], "padding_token": names["pad"], "bos_token": names["bos"],
               "eos_token": names["eos"]}
    return gluonnlp.Vocab.from_json(json.dumps({"idx_to_token": tokens,
                                                "token_to_idx": {token: index for index,
                                                                 token in enumerate(tokens)},
                                                "reserved_tokens": list(members.values()),
                                                "unknown_token": names["unk"],
                                                "identifiers_to_tokens": members}))
