"""Experiments as data and two functions, and the running of one, from a command or a notebook.

    from experiments import convergence_30

    config = convergence_30.EXPERIMENT.config("laptop", learning_rate=0.001)
    report = convergence_30.EXPERIMENT.run(config, "runs/mine", seeds=3)

The report holds the claims, the tables and the figures.
"""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import configs, drawing, schedule
from experiments.harness.claims import Claim
from experiments.harness.plans import Plan
from experiments.harness.schedule import Part
from prelu_jax import files, names
from prelu_jax.runs import processes

Rows = Iterable[Sequence[Any]]  # of a CSV file, the heads of the columns first


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of an experiment.

    Attributes:
        claims: the paper's statements as checks.
        text: Markdown of table.md; empty for none.
        tables: name of a CSV file -> its rows.
        figures: name of a figure's files without their ending -> the Matplotlib figure.
    """

    claims: Sequence[Claim]
    text: str = ""
    tables: Mapping[str, Rows] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def write(self, workdir: Path) -> None:
        """Write the figures and tables to a folder, and print the text and the files' paths."""
        workdir.mkdir(parents=True, exist_ok=True)
        written = []
        for stem, figure in self.figures.items():
            written += drawing.save(figure, workdir / stem)
        if self.text:
            written.append(workdir / "table.md")
            files.write_text(written[-1], self.text)
            print(f"\n{self.text}", end="")
        for name, rows in self.tables.items():
            written.append(workdir / name)
            with written[-1].open("w", newline="", encoding="utf-8") as out:
                csv.writer(out).writerows(rows)
        print("\nWritten:", *written, sep="\n  ")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment as data and two functions of its configuration, work folder and seeds.

    Attributes:
        name: of its module.
        scales: name -> configuration, a dataclass.
        report: returns the result, when the runs are trained; or an iterator over reports, each
            with the results of further seeds.
        plan: returns the runs to train; None for an experiment in one process without run folders.
            It raises a ValueError if the configuration is impossible.
        default_seeds: the number of seeds where none is given.
    """

    name: str
    scales: Mapping[str, Any]
    report: Callable[[Any, Path, Sequence[int]], Report | Iterator[Report]]
    plan: Callable[[Any, Path, Sequence[int]], Plan] | None = None
    default_seeds: int = 3

    def config(self, scale: str = "laptop", **fields: Any) -> Any:
        """Return the configuration of a scale, with some fields changed."""
        names.check("scale", scale, self.scales)
        known = [field.name for field in dataclasses.fields(self.scales[scale])]
        for field in fields:
            names.check("config field", field, known)
        return dataclasses.replace(self.scales[scale], **fields)

    def run(
        self,
        config: Any,
        workdir: str | Path,
        seeds: int | None = None,
        part: Part | None = None,
        stall_timeout: float = 0,
    ) -> Report | None:
        """Train the runs that are missing, write the report and return it.

        Args:
            config: of the experiment.
            workdir: holds the folders of the runs, and the files of the report.
            seeds: their number, from ``config.seed`` on; ``default_seeds`` by default.
            part: trains these runs alone.
            stall_timeout: as `schedule.train_all` takes it.

        Returns:
            None if there is nothing to report: with a part, and in all processes but the first.

        Raises:
            ValueError: the configuration is impossible, or a file is damaged.
        """
        config = configs.checked(config)
        first = getattr(config, "seed", 0)
        number = self.default_seeds if seeds is None else seeds
        if number < 1:
            raise ValueError(f"seeds is {seeds}, expected at least 1.")
        chosen = range(first, first + number)
        workdir = files.local_path(workdir, "workdir")
        if runs := self.plan(config, workdir, chosen) if self.plan else {}:
            schedule.train_all(runs, part, stall_timeout)
        elif part or processes.is_multiprocess():
            raise ValueError(
                "Nothing is trained with this configuration, which is for one process and in one "
                "piece: give no --part and no flag of several processes."
            )
        if part or not processes.is_first():
            return None
        result, report = self.report(config, workdir, chosen), None
        for report in [result] if isinstance(result, Report) else result:
            report.write(workdir)
        return report
