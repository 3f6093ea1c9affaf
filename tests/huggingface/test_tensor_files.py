"""Tensor files of the outside world: agreement with the safetensors library, and files and folders that
lie."""
from __future__ import annotations

import json
import os
import struct
import sys
import time
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bort
from bort.checkpoints.inspection import inspect, verify
from bort.errors import BortError
from bort.huggingface import export_folder, import_folder
from bort.huggingface.importing import inspect_folder
from bort.huggingface.tensor_files import open_folder, read_safetensors, write_safetensors
from bort.huggingface.torch_files import read_torch
from bort.text.tokenizers.loading import train_sentencepiece
from tests.huggingface.test_folders import SHAPES, classifier, equal, trained
from tests.huggingface.test_parity import hub, settings_of, shaken  # noqa: F401  hub is a fixture


@pytest.fixture
def exported(tmp_path):
    """A tiny MLM at Hugging Face."""
    bort.save(trained(), tmp_path / "m")
    export_folder(tmp_path / "m", tmp_path / "hf")
    return tmp_path / "hf"


def test_files_agree_with_the_safetensors_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(3, 5)).astype("float32"), "b": rng.normal(size=()).astype("float32"),
              "none": np.zeros((0, 4), "float32"), "ü": rng.normal(size=(2, 1, 2)).astype("float32")}
    write_safetensors(tmp_path / "ours.safetensors", arrays,
                      {name: array.shape for name, array in arrays.items()})
    library.save_file({**arrays, "half": arrays["a"].astype("float16"), "ids": np.arange(4)},
                      tmp_path / "theirs.safetensors")
    read = library.load_file(tmp_path / "ours.safetensors")
    found = read_safetensors(tmp_path / "theirs.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        np.testing.assert_array_equal(found[name].array(), array)
        assert found[name].shape == array.shape
    np.testing.assert_array_equal(found["half"].array(), arrays["a"].astype("float16"))
    with pytest.raises(BortError, match="I64, not floating"):
        found["ids"].array()


def forged(path, header, data=b"\0" * 64, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {"huge header": (b"{}", 1 << 60), "header past the end": (b"{}", 1000), "empty header": (b"", 0),
           "huge offsets": {"a": entry([1 << 40], 0, 1 << 42)}, "negative": {"a": entry([-16], 0, -64)},
           "overlap": {"a": entry([8], 0, 32), "b": entry([10], 24, 64)}, "same": {"a": entry([16], 0, 64),
                                                                                   "b": entry([16], 0, 64)},
           "gap": {"a": entry([4], 0, 16), "b": entry([8], 32, 64)}, "unclaimed": {"a": entry([8], 0, 32)},
           "reversed": {"a": entry([16], 64, 0)}, "shape too large": {"a": entry([17], 0, 64)},
           "overflowing shape": {"a": entry([1 << 40, 1 << 40, 1 << 40], 0, 64)},
           "dtype": {"a": entry([16], 0, 64, "F31")}, "float offsets": {"a": entry([16], 0.0, 64.0)},
           "bool shape": {"a": entry([True], 0, 64)},
           "too many dimensions": {"a": entry([1] * 9 + [16], 0, 64)}, "list": [1, 2],
           "no members": {"a": {}}, "string": {"a": "b"},
           "json bomb": (b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}", None),
           "not utf-8": (b'{"\xff": 1}', None),
           "many": {f"t{index}": entry([0], 0, 0) for index in range(20_000)}, "nan": (b'{"a": NaN}', None),
           "long number": (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 4000
                           + b'], "data_offsets": [0, 64]}}', None)}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_quickly_and_cheaply(tmp_path, name):
    header = HOSTILE[name]
    header, length = header if isinstance(header, tuple) else (header, None)
    forged(tmp_path / "x.safetensors", header, length=length)
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(BortError, match="x.safetensors"):
            read_safetensors(tmp_path / "x.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20 and time.process_time() - started < 10
    finally:
        tracemalloc.stop()


@settings(max_examples=80)
@given(data=st.data())
def test_damaged_folders_import_or_are_refused(tmp_path_factory, data):
    """Bytes changed, cut or added anywhere: either a clear error, or tensors of the shapes that the config
    names."""
    folder = tmp_path_factory.mktemp("fuzz")
    if not hasattr(test_damaged_folders_import_or_are_refused, "content"):
        bort.save(trained(), folder / "m")
        export_folder(folder / "m", folder / "hf")
        test_damaged_folders_import_or_are_refused.content = {
            name: (folder / "hf" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    content = dict(test_damaged_folders_import_or_are_refused.content)
    name = data.draw(st.sampled_from(sorted(content)))
    raw = bytearray(content[name])
    limit = len(raw) if name == "config.json" else data.draw(st.sampled_from([16, 3000, len(raw)]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        raw = raw[:data.draw(st.integers(0, len(raw)))]
    (folder / "config.json").write_bytes(content["config.json"])
    (folder / "model.safetensors").write_bytes(content["model.safetensors"])
    (folder / name).write_bytes(bytes(raw))
    tracemalloc.start()
    try:
        import_folder(folder, folder / "out", token_types="fold")
        bort.load(folder / "out")
    except BortError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 32 << 20


def test_bfloat16_is_widened_exactly(tmp_path):
    values = np.asarray([[1.0, -2.5, 3.0e38], [0.0, 1e-30, -0.0]], "float32")
    bits = (values.view("uint32") >> 16).astype("<u2")
    header = {"a": entry([2], 0, 8), "b": entry([2, 3], 8, 20, "BF16"), "none": entry([0, 2], 20, 20, "BF16")}
    forged(tmp_path / "x.safetensors", header, bytes(8) + bits.tobytes())
    found = read_safetensors(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(found["b"].array(), (bits.astype("uint32") << 16).view("float32"))
    assert found["none"].array().shape == (0, 2) and not found["a"].array().any()


def test_files_that_are_none_are_named(exported, tmp_path):
    path = exported / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    with pytest.raises(BortError, match="pointer of Git LFS"):
        import_folder(exported, tmp_path / "x")
    path.rename(exported / "pytorch_model.bin")
    with pytest.raises(BortError, match="pointer of Git LFS|pip install torch"):
        import_folder(exported, tmp_path / "x")
    (exported / "pytorch_model.bin").unlink()
    os.mkfifo(path)
    with pytest.raises(BortError, match="not a regular file"):
        import_folder(exported, tmp_path / "x")


def test_links_out_of_the_folder_are_not_followed(exported, tmp_path):
    secret = tmp_path / "elsewhere" / "model.safetensors"
    secret.parent.mkdir()
    (exported / "model.safetensors").rename(secret)
    (exported / "model.safetensors").symlink_to(secret)
    with pytest.raises(BortError, match="link out of its folder"):
        import_folder(exported, tmp_path / "x")
    (exported / "model.safetensors").unlink()
    (exported / "model.safetensors").symlink_to(tmp_path / "nothing")
    with pytest.raises(BortError, match="link out of its folder"):
        import_folder(exported, tmp_path / "x")
    (exported / "model.safetensors").unlink()
    secret.rename(exported / "model.safetensors")
    (tmp_path / "vocab.json").write_text("{}")
    (exported / "vocab.json").symlink_to(tmp_path / "vocab.json")
    with pytest.raises(BortError, match="link out of its folder"):
        import_folder(exported, tmp_path / "x")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "", ".", "..",
                                  ".hidden"])
def test_shard_names_are_plain(exported, tmp_path, name):
    tensors = list(open_folder(exported)[0])
    (exported / "model.safetensors").rename(exported / "shard.safetensors")
    index = exported / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "shard.safetensors")}))
    import_folder(exported, tmp_path / "a")
    assert equal(bort.load(tmp_path / "a"), trained())
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    with pytest.raises(BortError, match="plain name"):
        import_folder(exported, tmp_path / "x")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors[1:], "shard.safetensors")}))
    with pytest.raises(BortError, match="belong together"):
        import_folder(exported, tmp_path / "x")
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(BortError, match="weight_map"):
        import_folder(exported, tmp_path / "x")


def test_an_index_may_list_a_tied_matrix_that_no_shard_holds(exported, tmp_path):
    embedding, copy = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    tensors = open_folder(exported)[0]
    (exported / "model.safetensors").rename(exported / "shard.safetensors")
    index = exported / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*tensors, copy], "shard.safetensors")}))
    import_folder(exported, tmp_path / "a")
    assert equal(bort.load(tmp_path / "a"), trained())
    # The one that is stored may be either.
    arrays = {copy if name == embedding else name: tensor.array() for name, tensor in tensors.items()}
    write_safetensors(exported / "shard.safetensors", arrays,
                      {name: array.shape for name, array in arrays.items()})
    import_folder(exported, tmp_path / "b")
    assert equal(bort.load(tmp_path / "b"), trained())


def test_the_download_caches_links_are_followed(exported, tmp_path):
    cache = tmp_path / "models--amazon--bort"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors")):
        (exported / name).rename(cache / "blobs" / str(number))
        (cache / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{number}")
    import_folder(cache / "snapshots" / "abc", tmp_path / "a")
    assert equal(bort.load(tmp_path / "a"), trained())


def test_a_config_bomb_is_refused(exported, tmp_path):
    (exported / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(BortError, match="config.json"):
        import_folder(exported, tmp_path / "x")
    (exported / "config.json").write_text(" " * (2 << 20))
    with pytest.raises(BortError, match="more than a file of this kind"):
        import_folder(exported, tmp_path / "x")
    (tmp_path / "m" / "config.json").write_text('{"format": [' + "[]," * 2_000_000 + "0]}")
    for look in (inspect, verify, bort.load):
        with pytest.raises(BortError, match="more than a file of this kind"):
            look(tmp_path / "m")


# ---- pytorch_model.bin

@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_files_are_read_as_weights_only(hub, tmp_path, legacy):  # noqa: F811
    import torch

    twin = shaken(hub.RobertaForMaskedLM(settings_of(hub, "roberta", SHAPES[0])))
    twin.save_pretrained(tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "a")
    state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    state["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"]
    (tmp_path / "hf" / "model.safetensors").unlink()
    path = tmp_path / "hf" / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    import_folder(tmp_path / "hf", tmp_path / "b")
    assert equal(bort.load(tmp_path / "a"), bort.load(tmp_path / "b"))

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({**state, "evil": Evil()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BortError, match="not a file of weights"):
        import_folder(tmp_path / "hf", tmp_path / "x")
    assert not (tmp_path / "owned").exists()
    torch.save({**state, "roberta.embeddings.word_embeddings.weight": torch.zeros(1).expand(1 << 20,
                                                                                            1 << 20)}, path,
               _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BortError, match="claim more"):
        import_folder(tmp_path / "hf", tmp_path / "x")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BortError):
        import_folder(tmp_path / "hf", tmp_path / "x")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(100_000_000))
    with pytest.raises(BortError, match="compressed archive"):
        import_folder(tmp_path / "hf", tmp_path / "x")


def test_pytorch_files_without_pytorch_say_what_to_do(exported, tmp_path, monkeypatch):
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BortError, match="pip install torch.*save_pretrained"):
        import_folder(exported, tmp_path / "x")
    (exported / "pytorch_model.bin").rename(exported / "tf_model.h5")
    with pytest.raises(BortError, match="only tf_model.h5"):
        import_folder(exported, tmp_path / "x")


@pytest.mark.parametrize("version, safe", [("1.13.1", False), ("2.5.1+cpu", False), ("unknown", False),
                                           ("2.6.0", True), ("2.13.0+cpu", True)])
def test_a_pytorch_that_runs_code_of_weights_is_refused(tmp_path, monkeypatch, version, safe):
    torch = SimpleNamespace(__version__=version, load=lambda *_, **__: 1 / 0)
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "x.bin").write_bytes(b"x" * 100)
    with pytest.raises(BortError, match="ZeroDivisionError" if safe else "install 2.6 or later"):
        read_torch(tmp_path / "x.bin")


def test_shards_of_pytorch_files_too(hub, tmp_path):  # noqa: F811
    import torch

    twin = shaken(hub.BertForMaskedLM(settings_of(hub, "bert", SHAPES[0])))
    twin.save_pretrained(tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "a")
    (tmp_path / "hf" / "model.safetensors").unlink()
    names = sorted(twin.state_dict())
    places = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
    for place in set(places.values()):
        torch.save({name: twin.state_dict()[name] for name in names if places[name] == place},
                   tmp_path / "hf" / place)
    (tmp_path / "hf" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    import_folder(tmp_path / "hf", tmp_path / "b")
    assert equal(bort.load(tmp_path / "a"), bort.load(tmp_path / "b"))


@settings(max_examples=40)
@given(data=st.data())
def test_damaged_pytorch_files_are_read_or_refused(hub, tmp_path_factory, data):  # noqa: F811
    import torch

    folder = tmp_path_factory.mktemp("fuzz")
    torch.save({"a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(5)}, folder / "x.bin",
               _use_new_zipfile_serialization=data.draw(st.booleans()))
    raw = bytearray((folder / "x.bin").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.bin").write_bytes(raw[:data.draw(st.integers(1, len(raw)))] if data.draw(st.booleans())
                                   else raw)
    try:
        for tensor in read_torch(folder / "x.bin").values():
            tensor.array()
    except BortError:
        pass


# ---- model folders

@settings(max_examples=80)
@given(data=st.data())
def test_damaged_model_folders_are_described_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    bort.save(trained(), folder)
    path = folder / data.draw(st.sampled_from(["config.json", "model.params"]))
    raw = bytearray(path.read_bytes())
    limit = len(raw) if path.name == "config.json" else data.draw(st.sampled_from([100, len(raw)]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        for look in (inspect, verify):
            try:
                look(folder)
            except BortError:
                pass
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def members(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else ():
        yield from members(value[key], (*path, key))


def replaced(value, path, new):
    return new if not path else {**value, path[0]: replaced(value[path[0]], path[1:], new)}


ODD = [None, True, -1, 0, 3, 1.5, float("inf"), float("nan"), 10 ** 30, 1 << 27, "", "x" * 4000, [], [None],
       ["x"], {}, {"a": 1}, {"0": 3}]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A classifier with everything that a config can hold, here and at Hugging Face: folders and configs."""
    folder = tmp_path_factory.mktemp("configs")
    tokenizer = train_sentencepiece(["the cat sat on the mat and the dog lay in the sun near a house of wood"]
                                    * 5, 40)
    model = classifier("linear", 3, vocab_size=tokenizer.vocab_size)
    model.task_name, model.encoding, model.labels = "CB", "paper", ["a", "b", "c"]
    bort.save(model, folder / "ours", tokenizer, extra={"training": {"max_length": 12},
                                                        "mlm_head": "trained"})
    export_folder(folder / "ours", folder / "theirs")
    return [(path, json.loads((path / "config.json").read_text())) for path in (folder / "ours",
                                                                                folder / "theirs")]


@settings(max_examples=150)
@given(data=st.data())
def test_odd_configs_are_used_or_refused(configs, tmp_path_factory, data):
    folder, config = data.draw(st.sampled_from(configs))
    path = data.draw(st.sampled_from(list(members(config))))
    (folder / "config.json").write_text(json.dumps(replaced(config, path, data.draw(st.sampled_from(ODD)))))
    out = tmp_path_factory.mktemp("out")
    for use in ((bort.load, inspect, verify, lambda source: bort.Predictor(source)([("the cat", "a dog")]),
                 lambda source: export_folder(source, out)) if folder.name == "ours" else
                (inspect_folder, lambda source: import_folder(source, out, token_types="fold"))):
        try:
            use(folder)
        except BortError:
            pass
