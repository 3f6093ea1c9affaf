"""One training step each of this project and of PyTorch, for throughput.py; every engine in a process of its
own.

    python -m benchmarks.harness.training_steps ENGINE  # JSON lines in and out

In one process the engines share OpenMP and its idle threads, which makes both slower than their users see
them. Commands (see ``benchmarks.harness.workers``): ``{"make": part, "distil": bool}``, ``{"steps": n}``.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, Dict, NamedTuple, Optional

import numpy as np

from benchmarks.harness import shapes, workers
from bort.architecture import Architecture

TUNED = {
    "OMP_WAIT_POLICY": "active",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}
"""What makes PyTorch faster here than it is by default: spinning threads as ours, and memory kept between
steps, which glibc otherwise gives back and asks for again, page by page (half a million pages in each step of
Bort)."""
OURS, OURS_TEACHER, OURS_BFLOAT16 = "ours", "ours, bfloat16 teacher", "ours, bfloat16"
TORCH, TORCH_AS_IT_COMES, TORCH_BFLOAT16 = (
    "PyTorch, fused AdamW",
    "PyTorch as it comes, fused AdamW",
    "PyTorch, bfloat16, fused AdamW",
)
OF_OURS = {OURS: ("float32", "float32"), OURS_TEACHER: ("float32", "bfloat16"),
           OURS_BFLOAT16: ("bfloat16", "bfloat16")}
"""What a step of ours trains in (``--dtype``) and its teacher computes in (``--precision``)."""
ENGINES: Dict[str, Dict[str, str]] = {
    OURS: {},
    OURS_TEACHER: {},
    OURS_BFLOAT16: {},
    TORCH: TUNED,
    TORCH_AS_IT_COMES: {},
    TORCH_BFLOAT16: TUNED,
}
"""Every engine with the variables that it runs with."""


class Part(NamedTuple):
    """Architectures, vocabulary and batch of one comparison."""

    student: Architecture
    teacher: Architecture
    vocab_size: int
    batch: int
    length: int


PARTS = {
    "bort": Part(Architecture(4, 8, 1024, 768), Architecture(24, 16, 1024, 4096), 50265, 8, 128),
    "small": Part(Architecture(4, 4, 256, 1024), Architecture(6, 8, 512, 2048), 8000, 16, 128),
}


class RandomCorpus:
    """Sequences of random tokens, all of one length; what they say does not matter here."""

    def __init__(self, part: Part, count: int = 4096) -> None:
        self._rng = np.random.default_rng(0)
        self.lengths = np.full(count, part.length, dtype=np.int32)
        self.rows = self._rng.integers(5, part.vocab_size, (min(count, 256), part.length)).astype(np.int32)
        self.rows[:, 0], self.rows[:, -1] = 0, 2

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index % len(self.rows)]


def masking(part: Part) -> Any:
    from bort.masked_lm.masking import MaskingPolicy

    return MaskingPolicy(part.vocab_size, 4, [0, 1, 2, 3, 4])


def mxnet_step(
    part: Part, distil: bool, batch: Optional[int] = None, accumulate: int = 1, engine: str = OURS
) -> Callable[[], None]:
    """A function that makes one training step of this project and waits for it.

    Raises:
        Unavailable: this processor has no bfloat16.
    """
    from bort.backend.mxnet import mx
    from bort.engines.base import EngineOptions
    from bort.engines.engine import open_engine
    from bort.masked_lm.losses import LossWeights
    from bort.masked_lm.teacher import LiveTeacher
    from bort.models import Bert, initialize
    from bort.pretraining.loop import Pretraining
    from bort.pretraining.settings import Corpus, Settings
    from bort.training.step import products_of

    dtype, precision = OF_OURS[engine]
    if "bfloat16" in (dtype, precision):
        shapes.check_bfloat16()
    student = Bert(part.student, part.vocab_size)
    initialize(student, 0)
    teacher = None
    if distil:
        model = Bert(part.teacher, part.vocab_size)
        initialize(model, 1)
        model.collect_params().setattr("grad_req", "null")
        states = open_engine(model, "masked_states", EngineOptions(precision=precision))
        teacher = LiveTeacher(model, 2.0, None, states, products_of(precision))
        print(f"{engine}: the teacher's engine is {states.report}", file=sys.stderr)
        del model
    loss = LossWeights(0.5, 0.5) if distil else LossWeights(1.0, 0.0)
    data = RandomCorpus(part)
    training = Pretraining(
        student,
        Corpus(data, data, masking(part), 1),
        Settings(batch_size=batch or part.batch, loss=loss, accumulate=accumulate, dtype=dtype),
        teacher,
    )

    def step() -> None:
        training.step()
        mx.nd.waitall()

    return step


def torch_step(part: Part, distil: bool, dtype: str) -> Callable[[], None]:
    """The same step in PyTorch: transformers' modules, fused AdamW, gradient clipping, the head at masked
    positions only.

    In bfloat16 the student is trained by ``torch.autocast``, as PyTorch's documentation shows it, and the
    teacher is cast as a whole.

    Raises:
        Unavailable: this processor has no bfloat16.
    """
    if dtype == "bfloat16":
        shapes.check_bfloat16()
    import torch
    from transformers import BertConfig, BertModel
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    from bort.masked_lm.batches import BatchPlan, BatchStream

    def network(architecture: Architecture) -> Any:
        config = BertConfig(
            vocab_size=part.vocab_size,
            hidden_size=architecture.hidden,
            num_hidden_layers=architecture.depth,
            num_attention_heads=architecture.heads,
            intermediate_size=architecture.intermediate,
            max_position_embeddings=512,
            type_vocab_size=1,
            pad_token_id=1,
            layer_norm_eps=1e-5,
        )
        body, head = BertModel(config, add_pooling_layer=False), BertLMPredictionHead(config)
        head.decoder.weight = body.embeddings.word_embeddings.weight
        return torch.nn.ModuleDict({"body": body, "head": head})

    torch.manual_seed(0)
    torch.set_num_threads(shapes.threads())
    student, teacher = network(part.student), network(part.teacher).eval() if distil else None
    low = dtype == "bfloat16"
    if teacher is not None and low:
        teacher = teacher.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, eps=1e-6, fused=True)
    functional = torch.nn.functional
    stream = BatchStream(RandomCorpus(part), masking(part), 1, 512, BatchPlan(seed=0, batch_size=part.batch))

    def logits(model: Any, ids: Any, mask: Any, rows: Any) -> Any:
        states = model["body"](input_ids=ids, attention_mask=mask).last_hidden_state
        return model["head"](states.reshape(-1, states.shape[-1])[rows])

    def step() -> None:
        (batch,) = stream.next()
        ids, rows = torch.from_numpy(batch.token_ids).long(), torch.from_numpy(batch.rows).long()
        mask = (torch.arange(ids.shape[1])[None] < torch.from_numpy(batch.valid_length)[:, None]).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            scores = logits(student, ids, mask, rows)
        scores = scores.float()
        loss = functional.cross_entropy(scores, torch.from_numpy(batch.labels).long())
        if teacher is not None:
            with torch.inference_mode():
                target = torch.softmax(logits(teacher, ids, mask, rows).float() / 2, -1)
            loss = 0.5 * loss + 0.5 * 4 * functional.cross_entropy(scores / 2, target.clone())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def answer(engine: str, command: Dict[str, Any], state: Dict[str, Any]) -> Dict[str, Any]:
    """One command's answer; ``steps`` gives seconds and processor seconds of each."""
    if "make" in command:
        part = PARTS[command["make"]]
        state["step"] = (
            mxnet_step(part, command["distil"], engine=engine)
            if engine in OF_OURS
            else torch_step(part, command["distil"], "bfloat16" if engine == TORCH_BFLOAT16 else "float32")
        )
        return {}
    seconds, processor = [], []
    for _ in range(command["steps"]):
        start, used = time.perf_counter(), time.process_time()
        state["step"]()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return {"seconds": seconds, "processor": processor}


if __name__ == "__main__":
    sys.exit(workers.serve(sys.argv[1], answer, sys.argv[1] in OF_OURS))
