"""What ``latency.py`` measured, as tables beside the paper's and as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from benchmarks.harness import common
from benchmarks.harness.engines import INT8_PEERS, Shape, number_format
from bort.architecture import Architecture
from bort.paper import TABLE_1

Row = Dict[str, Any]


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
            "Targets": self.targets(),
            f"{self.first}: engines": self.every(),
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
        """The ratios that were asked for, whether this run reaches them, and what could be reached at all.

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

        shapes = list(dict.fromkeys(result.shape for result in self.results if result.architecture == bort))
        for shape in shapes:
            where = show_shape(shape)
            add(
                f"mxnet beside onnxruntime-hf, {where}",
                1.0,
                self.median(bort, "onnxruntime-hf", shape),
                "mxnet",
                shape,
            )
            add(f"mxnet beside pytorch, {where}", 1.9, self.median(bort, "pytorch", shape), "mxnet", shape)
            peers = [
                seconds for seconds in (self.median(bort, peer, shape) for peer in INT8_PEERS) if seconds
            ]
            add(
                f"mxnet-int8 beside the best int8 peer, {where}",
                1.2,
                min(peers) if peers else None,
                "mxnet-int8",
                shape,
            )
        for name, wanted in (("bert-base", 7.9), ("roberta-large", 20.0)):
            for stock in ("gluonnlp", "gluonnlp-tuned"):
                for engine in dict.fromkeys((stock, "mxnet")):
                    add(
                        f"{bort} in {engine} beside {name} in {stock}",
                        wanted,
                        self.median(name, stock),
                        engine,
                        self.shape,
                        name,
                    )
        return rows

    def every(self) -> List[Row]:
        """Every engine and shape of the first architecture."""
        rows = []
        for result in self.results:
            if result.architecture != self.first:
                continue
            ours, seconds = self.median(self.first, "mxnet", result.shape), float(np.median(result.seconds))
            share = self.share(result)
            rows.append(
                {
                    "batch x length": show_shape(result.shape),
                    "engine": result.engine,
                    **common.summarize(result.seconds),
                    "ms per sequence": round(seconds * 1000 / result.shape[0], 2),
                    "times mxnet": round(seconds / ours, 2) if ours else None,
                    "% of peak": round(share, 1) if share is not None else None,
                    "largest difference": float(f"{result.difference:.2g}"),
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

        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(13, 5.2), gridspec_kw={"width_ratios": [1, 1.25]}
        )
        shapes = [shape for shape in dict.fromkeys(result.shape for result in self.results) if shape[0] == 1]
        height = 0.8 / max(1, len(shapes))
        for number, shape in enumerate(shapes):
            known = [
                (place, self.median(self.first, engine, shape)) for place, engine in enumerate(self.engines)
            ]
            bars = left.barh(
                [place + number * height for place, seconds in known if seconds],
                [seconds * 1000 for _, seconds in known if seconds],
                height,
                label=show_shape(shape),
            )
            left.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        left.set_yticks([place + 0.4 - height / 2 for place in range(len(self.engines))], self.engines)
        left.invert_yaxis()
        left.set_xlabel("ms (median)")
        left.set_title(f"{self.first} {self.architectures[self.first].display}")
        left.margins(x=0.12)
        left.legend(title="batch x length")
        self._ratios_chart(right)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(str(path), dpi=110)
        pyplot.close(figure)
        return path.name

    def _ratios_chart(self, axes: Any) -> None:
        """Times of the architectures over the first one's, per engine and in the paper."""
        rows = self.ratios()
        if not rows:
            axes.set_axis_off()
            return
        columns = [column for column in ("paper", *self.engines) if any(row.get(column) for row in rows)]
        width = 0.8 / len(columns)
        for number, column in enumerate(columns):
            places = [place + number * width for place, row in enumerate(rows) if row.get(column)]
            values = [row[column] for row in rows if row.get(column)]
            bars = axes.bar(places, values, width, label=column, color="black" if column == "paper" else None)
            axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=1)
        axes.set_xticks(
            [place + 0.4 - width / 2 for place in range(len(rows))], [row["architecture"] for row in rows]
        )
        axes.set_yscale("log")
        axes.set_ylabel("log scale")
        axes.margins(y=0.1)
        axes.set_title(f"Times slower than {self.first}, same engine, {show_shape(self.shape)}")
        axes.legend(fontsize=8, loc="upper left")
