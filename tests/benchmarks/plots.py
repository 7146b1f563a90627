"""The plots of a run: how long callers waited, and what the systems cost."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tests.benchmarks.sections import Row

COLOURS = {"in the room": "#0a7d55", "parked": "#5aa9e6", "in the room, voice": "#7a5195", "livekit-agents": "#ef6a3a"}
WIDTH, HEIGHT, DOTS_PER_INCH = 10, 3.4, 90
"""Small files that can be read on a page."""


def draw(rows: dict[str, list[Row]], folder: Path) -> dict[str, str]:
    """Write each plot that there are rows for; returns their names, with what they show."""
    written = {}
    waits = [name for name in ("latency", "burst 8", "burst 50", "poisson") if name in rows]
    if waits:
        figure, axes = plt.subplots(1, len(waits), figsize=(WIDTH, HEIGHT), squeeze=False)
        for axis, name in zip(axes[0], waits, strict=True):
            _draw_waits(axis, rows[name], name)
        axes[0][0].set_ylabel("share of the calls")
        axes[0][0].legend(fontsize=7, loc="lower right")
        written["first_sound.png"] = "Share of the calls that had heard the agent after so many milliseconds"
        _save(figure, folder / "first_sound.png")
    if "memory" in rows and "processor" in rows:
        figure, axes = plt.subplots(1, 3, figsize=(WIDTH, HEIGHT - 1), squeeze=False)
        memory = {row["system"]: row["warm_tree_pss"] for row in rows["memory"]}
        _draw_bars(axes[0][0], memory, "tree of 4 warm agents, MB")
        first = {row["system"]: row for row in reversed(rows["processor"])}
        _draw_bars(axes[0][1], {n: r["start_seconds"] for n, r in first.items()}, "start and end, core-seconds")
        live = {n: 100 * statistics.mean(r["live"]) for n, r in first.items()}
        _draw_bars(axes[0][2], live, "live agent, % of a core")
        written["cost.png"] = "Memory and processor time, by system"
        _save(figure, folder / "cost.png")
    return written


def _draw_waits(axis: Axes, rows: list[Row], name: str) -> None:
    for system, colour in COLOURS.items():
        ours = [row for row in rows if row["system"] == system]
        heard = sorted(row["heard"] for row in ours if "lost" not in row)
        if ours:  # a lost call keeps the line below 1
            axis.step(heard, [(n + 1) / len(ours) for n in range(len(heard))], where="post", color=colour, label=system)
    axis.set_title({"latency": "one at a time", "poisson": "as they come"}.get(name, name), fontsize=9)
    axis.set_xlabel("ms to the first sound", fontsize=8)
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1.02)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)


def _draw_bars(axis: Axes, values: dict[str, float], title: str) -> None:
    names = [name for name in COLOURS if name in values]
    axis.barh(names[::-1], [values[name] for name in names[::-1]], color=[COLOURS[name] for name in names[::-1]])
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=DOTS_PER_INCH)
    plt.close(figure)
