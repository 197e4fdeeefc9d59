"""Tables of figures: of one run, or of two runs compared."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bench_parts.measurement import Figures


class Report(msgspec.Struct):
    """The results of a run."""

    about: dict[str, str]
    figures: dict[str, Figures]
    failures: dict[str, str]


def write(report: Report, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def read(path: Path) -> Report:
    """Read a report. Raises OSError, and msgspec.ValidationError for another kind of file."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def show(report: Report) -> str:
    """Return a Markdown table with notes, failures and profiles."""
    rows = [
        (
            name,
            f"{each.operations}",
            _short(each.cpu_ms),
            _short(each.database_cpu_ms),
            _short(each.per_second) + ("*" if each.generator_share > 0.7 else ""),
            _short(each.p50_ms),
            _short(each.p95_ms),
            _short(each.p99_ms),
            f"{each.peak_mb:.0f}",
        )
        for name, each in report.figures.items()
    ]
    heads = (
        "scenario",
        "operations",
        "CPU ms",
        "of it PostgreSQL",
        "per second",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "peak MB",
    )
    lines = [
        ", ".join(f"{name} {value}" for name, value in report.about.items()),
        "",
        *_table(heads, rows),
        "",
    ]
    for name, each in report.figures.items():
        lines.extend(f"- {name}: {_short(value)} {unit}" for unit, value in each.notes.items())
    if any(each.generator_share > 0.7 for each in report.figures.values()):
        lines.append("- * the generator was busy: rate and latency may be those of the generator")
    if report.about.get("sizes") == "quick":
        lines.append(
            "- with --quick there are fewer users, rooms and devices than the names and "
            "descriptions of the scenarios say"
        )
    lines.extend(f"- {name} FAILED: {text}" for name, text in report.failures.items())
    for name, each in report.figures.items():
        if each.profile:
            lines.extend(["", f"{name}:", *each.profile])
    return "\n".join(lines)


def compare(old: Report, new: Report) -> str:
    """Return a table that compares CPU, latency and memory of two runs."""
    rows = []
    for name, after in new.figures.items():
        before = old.figures.get(name)
        if before is not None:
            rows.append(
                (
                    name,
                    _short(before.cpu_ms),
                    _short(after.cpu_ms),
                    _ratio(before.cpu_ms, after.cpu_ms),
                    _ratio(before.p50_ms, after.p50_ms),
                    _ratio(before.p99_ms, after.p99_ms),
                    _ratio(before.peak_mb, after.peak_mb),
                )
            )
    heads = ("scenario", "CPU ms, old", "CPU ms, new", "CPU", "p50", "p99", "peak memory")
    return "\n".join(_table(heads, rows))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _ratio(before: float, after: float) -> str:
    return f"x {after / before:.2f}" if before else "–"


def _short(value: float) -> str:
    """Format with three significant digits."""
    return (
        f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value
        else "0"
    )
