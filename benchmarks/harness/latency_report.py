"""What ``latency.py`` measured, as tables beside the paper's and as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import common
from benchmarks.harness.engines import OURS
from benchmarks.harness.shapes import Shape, number_format
from bort.architecture import Architecture
from bort.paper import TABLE_1

Row = Dict[str, Any]
CLASSES = {"float32": 1.05, "reduced precision": 1.15}
"""Classes of accuracy, and how many times faster than the best peer of the class ours is to be for one
sequence."""
BASELINES = ("gluonnlp", "gluonnlp-tuned")
"""The paper's engine, which is no peer that anybody would pick for its speed."""


def accuracy_class(engine: str) -> str:
    """One of :data:`CLASSES`."""
    return "float32" if number_format(engine) == "float32" else "reduced precision"


def show_shape(shape: Shape) -> str:
    """``8 x 128`` with ``, padded`` where it is."""
    return f"{shape[0]} x {shape[1]}{', padded' if shape[2] else ''}"


class Report:
    """Tables and chart.

    Args:
        results: ``latency.Measured`` tuples.
        architectures: by the names in the results, in order; the first is the one the others are compared
            with.
        peaks: number format to (operations per second, engine).
    """

    def __init__(
        self,
        results: Sequence[Any],
        architectures: Mapping[str, Architecture],
        peaks: Mapping[str, Tuple[float, str]],
    ) -> None:
        self.results, self.architectures, self.peaks = list(results), dict(architectures), dict(peaks)
        self.first = next(iter(self.architectures))
        self.engines = list(dict.fromkeys(result.engine for result in self.results))
        self.shape = self.results[0].shape
        self._median = {
            (result.architecture, result.shape, result.engine): float(np.median(result.seconds))
            for result in self.results
        }

    def median(self, architecture: str, engine: str, shape: Optional[Shape] = None) -> Optional[float]:
        """Seconds, or None where it was not measured."""
        return self._median.get((architecture, shape or self.shape, engine))

    def share(self, result: Any) -> Optional[float]:
        """The share of the machine's peak rate in this number format, in percent, counting every
        operation."""
        kind = number_format(result.engine)
        if kind not in self.peaks:
            return None
        work = result.shape[0] * self.architectures[result.architecture].flops(result.shape[1])
        return 100 * work / float(np.median(result.seconds)) / self.peaks[kind][0]

    def tables(self) -> Dict[str, List[Row]]:
        """By heading, for ``records.record``; empty ones are left out."""
        made = {
            f"Table 1: milliseconds for {show_shape(self.shape)} tokens": self.table1(),
            f"Times slower than {self.first} in the same engine": self.ratios(),
            "Ours beside the best peer of the same accuracy": self.best(),
            "Targets": self.targets(),
            **{f"{self.first}: {kind}": self.every(kind) for kind in CLASSES},
            "The floor: matrix products": self.floor(),
        }
        return {heading: rows for heading, rows in made.items() if rows}

    def table1(self) -> List[Row]:
        """One row per architecture: the paper's seconds, our milliseconds per engine."""
        paper = {row.preset: row for row in TABLE_1}
        rows = []
        for name, architecture in self.architectures.items():
            theirs = paper.get(name.lower())
            row: Row = {
                "architecture": theirs.name if theirs else name,
                "⟨D,A,H,I⟩": architecture.display,
                "paper s": theirs.seconds if theirs else None,
            }
            for engine in self.engines:
                seconds = self.median(name, engine)
                row[engine] = None if seconds is None else round(seconds * 1000, 1)
            rows.append(row)
        return rows

    def ratios(self) -> List[Row]:
        """Each architecture's time over the first one's, engine by engine, and the paper's."""
        paper = {row.preset: row.seconds for row in TABLE_1}
        rows = []
        for name in list(self.architectures)[1:]:
            theirs, base = paper.get(name.lower()), paper.get(self.first.lower())
            row: Row = {"architecture": name, "paper": round(theirs / base, 2) if theirs and base else None}
            for engine in self.engines:
                mine, first = self.median(name, engine), self.median(self.first, engine)
                row[engine] = round(mine / first, 2) if mine and first else None
            rows.append(row)
        return rows

    def targets(self) -> List[Row]:
        """The paper's ratios, whether this run reaches them, and what could be reached at all.

        "At the peak" is the ratio with the faster side at the machine's peak rate; "of the work" that of the
        FLOPs, which is what two networks differ by in an engine that computes both equally well.
        """
        bort, rows = self.first, []

        def work(name: str, shape: Shape) -> float:
            return float(shape[0] * self.architectures[name].flops(shape[1]))

        def add(
            target: str,
            wanted: float,
            slow: Optional[float],
            engine: str,
            shape: Shape,
            other: Optional[str] = None,
        ) -> None:
            fast, rate = self.median(bort, engine, shape), self.peaks.get(number_format(engine), (0.0, ""))[0]
            if slow and fast:
                rows.append(
                    {
                        "target": target,
                        "wanted": wanted,
                        "measured": round(slow / fast, 2),
                        "met": slow / fast >= wanted,
                        "at the peak": round(slow * rate / work(bort, shape), 2) if rate else None,
                        "of the work": round(work(other, shape) / work(bort, shape), 2) if other else None,
                    }
                )

        for name, wanted in (("bert-base", 7.9), ("roberta-large", 20.0)):
            for stock in ("gluonnlp", "gluonnlp-tuned"):
                for engine in dict.fromkeys((stock, "mxnet", "openvino")):
                    add(
                        f"{bort} in {engine} beside {name} in {stock}",
                        wanted,
                        self.median(name, stock),
                        engine,
                        self.shape,
                        name,
                    )
        return rows

    def best(self) -> List[Row]:
        """Our fastest engine and the fastest peer, by shape and class of accuracy."""
        rows = []
        measured = [result.shape for result in self.results if result.architecture == self.first]
        for shape in dict.fromkeys(measured):
            for kind, wanted in CLASSES.items():
                ours, theirs = (self.fastest(shape, kind, side) for side in (True, False))
                if ours and theirs:
                    ratio = theirs[1] / ours[1]
                    single = shape[0] == 1
                    rows.append(
                        {
                            "batch x length": show_shape(shape),
                            "accuracy": kind,
                            "ours": ours[0],
                            "ms": round(ours[1] * 1000, 2),
                            "best peer": theirs[0],
                            "its ms": round(theirs[1] * 1000, 2),
                            "ours is faster by": round(ratio, 2),
                            "wanted": wanted if single else None,
                            "met": ratio >= wanted if single else None,
                        }
                    )
        return rows

    def fastest(self, shape: Shape, kind: str, ours: bool) -> Optional[Tuple[str, float]]:
        """Engine and seconds; None where none was measured."""
        found = [
            (engine, self.median(self.first, engine, shape))
            for engine in self.engines
            if accuracy_class(engine) == kind and (engine in OURS) == ours and engine not in BASELINES
        ]
        return min(((engine, time) for engine, time in found if time), key=lambda each: each[1], default=None)

    def every(self, kind: str) -> List[Row]:
        """Every engine of a class and every shape of the first architecture."""
        rows = []
        for result in self.results:
            if result.architecture != self.first or accuracy_class(result.engine) != kind:
                continue
            peer, seconds = self.fastest(result.shape, kind, False), float(np.median(result.seconds))
            share = self.share(result)
            rows.append(
                {
                    "batch x length": show_shape(result.shape),
                    "engine": result.engine,
                    **common.summarize(result.seconds),
                    "ms per sequence": round(seconds * 1000 / result.shape[0], 2),
                    "best peer / this": round(peer[1] / seconds, 2) if peer else None,
                    "% of peak": round(share, 1) if share is not None else None,
                    "largest difference": float(f"{result.difference:.2g}"),
                    **({} if kind == "float32" else {"correlation": round(result.correlation, 5)}),
                }
            )
        return rows

    def floor(self) -> List[Row]:
        """The machine's peak rates, and how long the first architecture would take at them."""
        work = self.shape[0] * self.architectures[self.first].flops(self.shape[1])
        column = f"{self.first} {show_shape(self.shape)} at this rate, ms"
        return [
            {
                "number format": kind,
                "10^9 operations/s": round(rate / 1e9, 1),
                "measured in": engine,
                column: round(work / rate * 1000, 2),
            }
            for kind, (rate, engine) in self.peaks.items()
        ]

    def chart(self, path: Path) -> Optional[str]:
        """Draw the bars; the file's name, or None without matplotlib."""
        try:
            import matplotlib
        except ImportError:
            return None
        matplotlib.use("Agg")
        from matplotlib import pyplot

        ratios = self.ratios()
        kinds = [kind for kind in CLASSES if any(accuracy_class(engine) == kind for engine in self.engines)]
        count = len(kinds) + bool(ratios)
        figure, places = pyplot.subplots(1, count, figsize=(6.5 * count, 5.2), squeeze=False)
        for axes, kind in zip(places[0], kinds):
            self._bars(axes, kind)
        if ratios:
            self._ratios_chart(places[0][-1], ratios)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(str(path), dpi=110)
        pyplot.close(figure)
        return path.name

    def _bars(self, axes: Any, kind: str) -> None:
        """Milliseconds of the engines of a class for one sequence, the fastest first, ours in bold."""
        shapes = [shape for shape in dict.fromkeys(result.shape for result in self.results) if shape[0] == 1]
        shapes = shapes or [self.shape]
        known = [engine for engine in self.engines if accuracy_class(engine) == kind]
        known.sort(key=lambda engine: self.median(self.first, engine, shapes[0]) or 0.0)
        height = 0.8 / len(shapes)
        for number, shape in enumerate(shapes):
            times = [(place, self.median(self.first, engine, shape)) for place, engine in enumerate(known)]
            bars = axes.barh(
                [place + number * height for place, seconds in times if seconds],
                [seconds * 1000 for _, seconds in times if seconds],
                height,
                label=show_shape(shape),
            )
            axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axes.set_yticks([place + 0.4 - height / 2 for place in range(len(known))], known)
        for label, engine in zip(axes.get_yticklabels(), known):
            label.set_fontweight("bold" if engine in OURS else "normal")
        axes.invert_yaxis()
        axes.set_xlabel("ms (median)")
        axes.set_title(f"{self.first} {self.architectures[self.first].display}, {kind}")
        axes.margins(x=0.12)
        axes.legend(title="batch x length", loc="upper right")

    def _ratios_chart(self, axes: Any, rows: Sequence[Row]) -> None:
        """Times of the architectures over the first one's, per engine and in the paper."""
        columns = [column for column in ("paper", *self.engines) if any(row.get(column) for row in rows)]
        width = 0.8 / len(columns)
        for number, column in enumerate(columns):
            places = [place + number * width for place, row in enumerate(rows) if row.get(column)]
            values = [row[column] for row in rows if row.get(column)]
            bars = axes.bar(places, values, width, label=column, color="black" if column == "paper" else None)
            axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=2, rotation=90)
        axes.set_xticks(
            [place + 0.4 - width / 2 for place in range(len(rows))], [row["architecture"] for row in rows]
        )
        axes.set_yscale("log")
        axes.set_ylabel("log scale")
        axes.margins(y=0.15)
        axes.set_title(f"Times slower than {self.first}, same engine, {show_shape(self.shape)}")
        axes.legend(fontsize=8, loc="upper left")
