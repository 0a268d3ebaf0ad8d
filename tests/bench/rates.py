"""How a measured rate is told: its 95 % interval, the row that says claim, world and aim, and the line that is printed.

The three parts of `odds.py` (gate, performance, drift) draw worlds; what they found is a share of some draws, told here.
"""

import re
from collections.abc import Iterable
from typing import Any


def wilson(hits: int, n: int) -> tuple[float, float]:
    "The 95 % interval of a share (Wilson 1927)."
    n = max(n, 1)
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)


def line(claim: str, world: str, hits: int, n: int, aim: str) -> dict[str, Any]:
    "What was claimed, in which world, how often it was found in n draws, and what is aimed at: `<= 0.05`, `>= 0.95`."
    low, high = wilson(hits, n)
    told = {"claim": claim, "world": world, "measured": hits / max(n, 1), "low": low, "high": high}
    return {**told, "aim": aim, "n": n}


def verdict(row: dict[str, Any]) -> str:
    "What an interval says of its aim: `met` or `missed` where it lies on one side of it, else `open`."
    found = re.fullmatch(r"(<=|>=) ([\d.]+)", row["aim"])
    if not found:
        return ""
    aim = float(found[2])
    inside = (row["high"] <= aim, row["low"] > aim) if found[1] == "<=" else (row["low"] >= aim, row["high"] < aim)  # fmt: skip
    return "met" if inside[0] else "missed" if inside[1] else "open"


def text(row: dict[str, Any]) -> str:
    "One printed line."
    shown = f"{row['measured']:8.4f} [{row['low']:.4f}, {row['high']:.4f}]"
    return f"{row['claim']:60} {row['world']:60} {shown}  aim {row['aim']}, n {row['n']:,}  {verdict(row)}".rstrip()


def printed(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    "All lines, each as soon as it is known."
    kept = []
    for row in rows:
        print(text(row), flush=True)
        kept.append(row)
    return kept


def by_claim(rows: Iterable[dict[str, Any]]) -> str:
    "The same below each claim, for a table."
    told: dict[str, list[str]] = {}
    for row in rows:
        shown = f"  {row['world']:82} {row['measured']:.4f} [{row['low']:.4f}, {row['high']:.4f}]  n {row['n']:,}  {verdict(row)}"
        told.setdefault(f"{row['claim']}, aim {row['aim']}", []).append(shown.rstrip())
    return "\n".join(line for claim, lines in told.items() for line in (claim, *lines))
