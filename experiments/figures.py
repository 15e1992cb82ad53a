"""Drawing, from curves alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.results import Curve

# The colours and dashes of He et al. 2015, Figures 2 and 3.
_STYLES = {"He": ("red", "solid"), "Xavier": ("blue", "dashed")}


def error_curves(curves: Sequence[Curve], title: str, caption: str, stem: Path) -> list[Path]:
    """Error against epochs, every seed thin and the median bold.

    Args:
        curves: of one or more arms; the seeds of an arm share their epochs, unless one diverged.
        title: above the axes.
        caption: below them: what was run.
        stem: path of the figure without its ending.

    Returns:
        The files written, a PNG and a PDF.
    """
    import matplotlib as mpl  # not needed to read results, and slow to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    for arm in dict.fromkeys(curve.arm for curve in curves):
        of_arm = [curve for curve in curves if curve.arm == arm]
        colour, dashes = _STYLES[arm]
        for curve in of_arm:
            axes.plot(curve.epochs, curve.errors, color=colour, ls=dashes, lw=0.8, alpha=0.45)
        shared = min(len(curve.epochs) for curve in of_arm)
        median = np.median([curve.errors[:shared] for curve in of_arm], axis=0)
        n = f"n = {len(of_arm)} seed{'s' if len(of_arm) > 1 else ''}"
        label = f"{arm}, median of {n}" if len(of_arm) > 1 else f"{arm}, {n}"
        axes.plot(of_arm[0].epochs[:shared], median, color=colour, ls=dashes, lw=2.5, label=label)
    axes.set_xlabel("Epochs", fontsize=13)
    axes.set_ylabel("Test error (%)", fontsize=13)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=13)
    figure.legend(loc="outside upper center", ncols=2, fontsize=12, frameon=False)
    figure.supxlabel(caption, fontsize=8, color="0.35")
    files = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in files:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return files
