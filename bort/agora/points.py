"""The data that Agora moves: what D holds, and which new points keep its labels balanced. No MXNet."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from bort.errors import BortError


def fingerprint(points: "Points") -> str:
    """SHA-256 in hexadecimal of sequences and labels, in order."""
    digest = hashlib.sha256(np.asarray(points.labels, dtype=np.float64).tobytes())
    for ids in points.token_ids:
        digest.update(np.int64(len(ids)).tobytes() + np.asarray(ids, dtype=np.int32).tobytes())
    return digest.hexdigest()


def level(counts: np.ndarray, offered: np.ndarray, budget: int) -> np.ndarray:
    """How many points of each stratum to accept so that D's labels become as equal as the offer allows.

    The smallest strata are filled first, to a common level; D never becomes less balanced than it is: a
    stratum goes beyond the present maximum only as far as all others follow.

    Args:
        counts: int (C,), D's points.
        offered: int (C,), new ones to choose from.
        budget: the most to accept altogether.

    Returns:
        int64 (C,), at most ``offered``, with a sum of at most ``budget``.
    """
    counts, offered = np.asarray(counts, dtype=np.int64), np.asarray(offered, dtype=np.int64)
    ceiling = max(int(counts.max()), int((counts + offered).min()))

    def accepted(height: int) -> np.ndarray:
        return np.minimum(offered, np.maximum(0, height - counts))

    low, high = int(counts.min()), ceiling
    while low < high:  # the greatest height whose acceptance the budget pays for
        middle = (low + high + 1) // 2
        low, high = (middle, high) if accepted(middle).sum() <= budget else (low, middle - 1)
    result = accepted(low)
    for stratum in range(len(counts)):  # what is left of the budget lifts some strata by one
        if (
            low < ceiling
            and result.sum() < budget
            and result[stratum] < offered[stratum]
            and counts[stratum] + result[stratum] == low
        ):
            result[stratum] += 1
    return result


def level_what_comes(counts: np.ndarray, offered: np.ndarray, budget: int, come: np.ndarray) -> np.ndarray:
    """:func:`level` among the strata of which ``come``, bool (C,), says that the teacher gives them at all.

    A class that the teacher gives never, or less often than it would take to fill it, must not keep the
    others from
    growing together: all that is offered of it is accepted, and then the others are levelled among
    themselves, as long as there are two. Where fewer than two come there is nothing to balance, and all
    strata count.
    """
    counts, offered = np.asarray(counts, dtype=np.int64), np.asarray(offered, dtype=np.int64)
    accepted = np.zeros(len(counts), dtype=np.int64)
    among = np.asarray(come, dtype=bool) if np.sum(come) > 1 else np.ones(len(counts), dtype=bool)
    while True:
        accepted[among] += level(
            (counts + accepted)[among], (offered - accepted)[among], budget - int(accepted.sum())
        )
        rest = among & (accepted < offered)
        if rest.sum() < 2 or (rest == among).all():
            return accepted
        among = rest


@dataclass
class Addition:
    """A point that tau made and the teacher labelled.

    Attributes:
        round, attempt: of the trainings that it was made for.
        source: where the point it was made from is: "train/17" (the 17th line's example, from 0),
            "evaluation/3" or "dev/3", "added/40" (the 40th line of additions.jsonl, from 0).
        tau: the kind of transformation.
        token_ids: the sequence.
        label: the teacher's class, or its value in regression.
        confidence: the teacher's probability of that class; None in regression.
        scores: the teacher's logits, or its value.
    """

    round: int
    attempt: int
    source: str
    tau: str
    token_ids: np.ndarray
    label: float
    confidence: Optional[float]
    scores: np.ndarray

    def row(self, text: Sequence[str], name: Any) -> Dict[str, Any]:
        """The line of ``additions.jsonl``, which also is what a resumed run reads back."""
        row = {**asdict(self), "text": list(text), "label_name": name}
        return {
            **row,
            "token_ids": self.token_ids.tolist(),
            "scores": [float(value) for value in self.scores],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Addition":
        """The inverse of :meth:`row`.

        Raises:
            BortError: the line is not one of ours.
        """
        try:
            values = {name: row[name] for name in cls.__dataclass_fields__}
            values["token_ids"] = np.asarray(values["token_ids"], dtype=np.int32)
            values["scores"] = np.asarray(values["scores"], dtype=np.float32)
            if values["token_ids"].ndim != 1 or values["scores"].ndim != 1:
                raise ValueError("token_ids and scores are lists of numbers")
            return cls(**values)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BortError(
                f"additions.jsonl: a line that Agora did not write ({error}); choose another --output"
            ) from error


@dataclass
class Points:
    """Labelled sequences: X, E or D.

    Attributes:
        token_ids: N int32 sequences.
        labels: (N,) classes or values.
        names: where each one is from, see :attr:`Addition.source`.
        scores: (N, C) the teacher's logits, or None.
    """

    token_ids: List[np.ndarray]
    labels: np.ndarray
    names: List[str]
    scores: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def with_additions(self, additions: Sequence[Addition], lines: Sequence[int]) -> "Points":
        """These points and the additions; ``lines`` are their places in additions.jsonl."""
        if not additions:
            return self
        labels = np.concatenate(
            [self.labels, np.asarray([addition.label for addition in additions], dtype=self.labels.dtype)]
        )
        scores = (
            None
            if self.scores is None
            else np.concatenate([self.scores, np.stack([addition.scores for addition in additions])]).astype(
                np.float32
            )
        )
        return Points(
            [*self.token_ids, *(addition.token_ids for addition in additions)],
            labels,
            [*self.names, *(f"added/{line}" for line in lines)],
            scores,
        )


@dataclass
class Queue:
    """Sources in the order in which they are to be transformed: wrong ones first, in random order, then the
    others.

    One stratum at a time can be asked for. When a stratum has been gone through, it begins anew with the next
    pattern.
    """

    order: np.ndarray
    strata: np.ndarray
    places: Dict[int, List[int]] = field(default_factory=dict)
    next_of: Dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        wrong: Iterable[int],
        strata_of: np.ndarray,
        rng: np.random.Generator,
        allowed: Optional[np.ndarray] = None,
    ) -> "Queue":
        """The queue over those of the points 0..N-1 that are ``allowed``, bool (N,); None allows all.

        Args:
            wrong: the points that were predicted wrongly.
            strata_of: int (N,), the stratum of each point.
        """
        is_wrong = np.zeros(len(strata_of), dtype=bool)
        is_wrong[np.asarray(list(wrong), dtype=np.int64)] = True
        shuffled = rng.permutation(len(strata_of))
        order = np.concatenate([shuffled[is_wrong[shuffled]], shuffled[~is_wrong[shuffled]]])
        if allowed is not None:
            order = order[allowed[order]]
        queue = cls(order, np.asarray(strata_of))
        for stratum in np.unique(strata_of).tolist():
            queue.places[stratum] = order[queue.strata[order] == stratum].tolist()
        return queue

    def take(self, stratum: int, count: int) -> List[Tuple[int, int]]:
        """The next ``count`` (point, pass) of a stratum; empty when it has no points."""
        places = self.places.get(stratum, [])
        if not places:
            return []
        begin = self.next_of.get(stratum, 0)
        self.next_of[stratum] = begin + count
        return [
            (places[number % len(places)], number // len(places)) for number in range(begin, begin + count)
        ]
