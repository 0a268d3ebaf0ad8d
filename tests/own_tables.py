"""Tables that nobody has described, generated: the kinds that people bring, each with its dirt."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

BEGIN = datetime(2023, 1, 1)


def _moments(rng: np.random.Generator, n: int, days: int) -> list[datetime]:
    return [BEGIN + timedelta(seconds=int(s)) for s in np.sort(rng.integers(0, days * 86400, n))]


def loans(seed: int = 1, n: int = 4000) -> pl.DataFrame:
    "A row for each decision, what was known, what came of it, and two columns written afterwards."
    rng = np.random.default_rng(seed)
    income, amount = np.exp(rng.normal(10.4, 0.5, n)).round(2), np.exp(rng.normal(9, 0.6, n)).round(2)
    age, past = rng.integers(19, 75, n), rng.choice(["good", "poor", "none"], n, p=[0.6, 0.2, 0.2])
    z = (
        -1.5
        + 1.1 * np.log(amount / income)
        + 1.4 * (past == "poor")
        + 0.5 * (past == "none")
        - 0.01 * (age - 40)
    )
    bad = rng.random(n) < 1 / (1 + np.exp(-z))
    return pl.DataFrame(
        {
            "loan_id": [f"L{100000 + i}" for i in range(n)],
            "applied_at": _moments(rng, n, 365),
            "age": age,
            "income": income,
            "amount": amount,
            "credit_history": past,
            "country": ["DE"] * n,
            "collection_agency": [["Alpha", "Beta"][i % 2] if b else None for i, b in enumerate(bad)],
            "recovered_amount": [
                round(float(a * rng.random()), 2) if b else 0.0 for a, b in zip(amount, bad, strict=True)
            ],
            "defaulted": bad.astype(int),
        }
    )


def visits(seed: int = 5, people: int = 600) -> pl.DataFrame:
    "A log of who visited what; some never return."
    rng, rows = np.random.default_rng(seed), []
    for who in range(people):
        start = rng.integers(0, 200)
        end, rate = start + rng.exponential(160), np.exp(rng.normal(-1.8, 1))
        for day in np.sort(
            rng.uniform(start, min(end, 365), max(rng.poisson(rate * max(min(end, 365) - start, 0)), 1))
        ):
            rows.append(
                (
                    who + 1000,
                    BEGIN + timedelta(days=float(day)),
                    rng.choice(["/home", "/tool/a", "/tool/b", "/prices"]),
                )
            )
    frame = pl.DataFrame(rows, schema=["user_id", "visited_at", "page"], orient="row")
    return frame.with_columns(pl.col("visited_at").dt.truncate("1s")).sort("visited_at")


def calls(seed: int = 7, n: int = 5000) -> pl.DataFrame:
    "Events of somebody who returns, with an outcome by id that is known some days later, and not yet for the newest."
    rng = np.random.default_rng(seed)
    who, at = rng.integers(1, 700, n), _moments(rng, n, 300)
    mood = rng.normal(size=700)
    sold = rng.random(n) < 1 / (1 + np.exp(2.0 - 1.5 * mood[who]))
    closed = [a + timedelta(days=float(d)) for a, d in zip(at, rng.gamma(2, 2, n), strict=True)]
    end = BEGIN + timedelta(days=300)
    return pl.DataFrame(
        {
            "call_id": range(50_000, 50_000 + n),
            "customer_id": who,
            "called_at": at,
            "channel": rng.choice(["phone", "mail"], n),
            "minutes": rng.integers(1, 40, n),
            "outcome_at": [c if c < end else None for c in closed],
            "success": [
                ("yes" if s else "no") if c < end else None for s, c in zip(sold, closed, strict=True)
            ],
        }
    )


def houses(seed: int = 3, n: int = 4000) -> pl.DataFrame:
    "What is asked for is a number."
    rng = np.random.default_rng(seed)
    area, where = rng.integers(30, 220, n), rng.choice(["north", "south", "east", "west"], n)
    price = (
        area * (2500 + 1500 * (where == "south") - 500 * (where == "east")) * np.exp(rng.normal(0, 0.15, n))
    )
    return pl.DataFrame(
        {
            "listing": range(1, n + 1),
            "listed_on": [m.date() for m in _moments(rng, n, 500)],
            "area_m2": area,
            "rooms": (area / 25 + rng.normal(0, 0.7, n)).round().clip(1).astype(int),
            "district": where,
            "built": rng.integers(1900, 2022, n),
            "price": price.round().astype(int),
        }
    )


def tickets(seed: int = 4, n: int = 3000) -> pl.DataFrame:
    "Short texts, of several classes."
    rng = np.random.default_rng(seed)
    words = {
        "billing": ["invoice", "charged", "refund", "card", "payment"],
        "technical": ["error", "crash", "login", "page", "broken"],
        "delivery": ["parcel", "late", "address", "courier", "lost"],
    }
    plain = "please the my is help with a since again not you when order today it".split()
    topic = rng.choice(list(words), n, p=[0.5, 0.3, 0.2])
    texts = [" ".join(rng.permutation([*rng.choice(words[t], 2), *rng.choice(plain, 5)])) for t in topic]
    names = [f"T-{i:06}" for i in range(n)]
    when = [m.isoformat() for m in _moments(rng, n, 200)]
    return pl.DataFrame(
        {
            "ticket": names,
            "created": when,
            "channel": rng.choice(["mail", "web"], n),
            "message": texts,
            "topic": topic,
        }
    )


def dirty(seed: int = 6) -> bytes:
    "Loans as a spreadsheet of another country wrote them: semicolons, cp1252, points and commas, marks, a sum below."
    rng = np.random.default_rng(seed)

    def money(value: float) -> str:
        return f"{value:,.2f}".translate(str.maketrans(",.", ".,")) + " €"

    lines = ["Kredit Nr;Datum;Alter;Einkommen;Höhe des Kredits;Bonität;Status"]
    for row in loans(seed, 12_000).iter_rows(named=True):
        age = "?" if rng.random() < 0.04 else row["age"]
        past = "N/A" if rng.random() < 0.02 else row["credit_history"]
        end = "Ausfall" if row["defaulted"] else "bezahlt"
        day = row["applied_at"].strftime("%d/%m/%Y")
        lines.append(
            f"{row['loan_id']};{day};{age};{money(row['income'])};{money(row['amount'])};{past};{end}"
        )
    return "\r\n".join([*lines[:60], lines[59], *lines[60:], "Summe;;;"]).encode("cp1252")


def _csv(make: Callable[[], pl.DataFrame]) -> Callable[[Path], None]:
    return lambda path: make().write_csv(path)


TABLES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "loans": ("loans.csv", _csv(loans)),
    "calls": ("calls.csv", _csv(calls)),
    "houses": ("houses.parquet", lambda path: houses().write_parquet(path)),
    "tickets": ("tickets.jsonl", lambda path: tickets().write_ndjson(path)),
    "visits": ("visits.csv", _csv(visits)),
    "kredite": ("Kredite 2023.csv", lambda path: path.write_bytes(dirty())),
}
