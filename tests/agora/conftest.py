"""Tasks, a student and teachers in miniature, for whole runs of Agora."""
from __future__ import annotations

import json

import numpy as np
import pytest

import bort
import run_finetune
from bort.errors import run_command
from tests.agora.runs import SHORT, command
from tests.tiny import TINY, TINY_TEACHER


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """SST-2 and COPA in miniature, a tokenizer, a student, and a teacher of either task that knows it."""
    from bort.models import Bert, initialize
    from bort.text.tokenizers.loading import train_sentencepiece

    folder = tmp_path_factory.mktemp("agora")
    rng = np.random.default_rng(0)
    good, bad = "fine lovely great warm".split(), "dull awful poor cold".split()
    plain = "the film a story is and of".split()

    def sentence(label):
        words = list(rng.choice(plain, 3)) + list(rng.choice(good if label else bad, 1))
        return " ".join(rng.permutation(words))

    (folder / "SST-2").mkdir()
    for split, count in (("train", 60), ("dev", 30)):
        rows = [f"{sentence(label)} \t{label}" for label in rng.integers(0, 2, count)]
        (folder / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    rows = [f"{index}\t{sentence(index % 2)}" for index in range(20)]
    (folder / "SST-2" / "test.tsv").write_text("index\tsentence\n" + "\n".join(rows) + "\n")
    (folder / "COPA").mkdir()
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        records = []
        for index in range(count):
            label = int(rng.integers(0, 2))
            record = {"premise": sentence(1), "choice1": sentence(1 - label), "choice2": sentence(label),
                      "question": "cause", "idx": index}
            records.append(json.dumps(record if split == "test" else {**record, "label": label}))
        (folder / "COPA" / f"{split}.jsonl").write_text("\n".join(records) + "\n")
    tokenizer = train_sentencepiece([*(folder / "SST-2" / "train.tsv").read_text().splitlines(),
                                     "because so I a n"], 60)
    for name in ("bort", "raw"):
        model = Bert(TINY, tokenizer.vocab_size, max_length=32)
        initialize(model, 0)
        if name == "bort":  # as if its MLM head had been trained, which tau's mlm asks for
            model.decoder[0].bias.set_data(model.decoder[0].bias.data() + 1e-3)
        bort.save(model, folder / name, tokenizer)
    return folder


@pytest.fixture(scope="session")
def teacher(workplace):
    """Teachers that need no training: random networks, large weights, the head's bias such that both labels
    occur."""
    from bort.finetuning.scoring import score
    from bort.finetuning.sources import classifier_for
    from bort.finetuning.task_data import read_task
    from bort.models import Bert, initialize

    tokenizer = bort.load_tokenizer(workplace / "bort")
    for name, folder in (("SST-2", "teacher"), ("COPA", "copa-teacher")):
        data = read_task(name, workplace / name, tokenizer, 32)
        body = Bert(TINY_TEACHER, tokenizer.vocab_size, max_length=32)
        initialize(body, 3)
        for key, parameter in body._collect_params_with_prefix().items():
            if key.endswith("weight") and key != "decoder.3.weight":
                parameter.set_data(parameter.data() * 10)
        model = classifier_for(data.task, body, 3)
        scores = score(model, data.train.tokens.token_ids, tokenizer.pad_id)
        model.classifier[1].bias.data()[0] = float(np.median(scores[:, 1] - scores[:, 0]))
        bort.save(model, workplace / folder / "model", tokenizer)
    (workplace
     / "grid.json").write_text('{"lr": [5e-3, 1e-2], "weight_decay": [0], "warmup": [0.1], "seed": [0]}')
    return workplace


@pytest.fixture(scope="session")
def uncut(teacher):
    assert run_command(run_finetune.main, command(teacher, "uncut", *SHORT, "--compare", "--tau",
                                                  "mlm,noise,embedding")) == 0
    return json.loads((teacher / "uncut" / "results.json").read_text())
