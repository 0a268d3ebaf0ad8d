"""Tables of people who never heard of this system: six kinds, each written anew for every seed in another language,
month, zone and file format. Each says what a newcomer must be told of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Strange:
    "A table as it was delivered, and what is true of it."

    file: Path
    target: str  # Its column with the outcome; empty: there is none, the question is who returns
    leaks: tuple[str, ...] = ()  # Columns that were written after the moment
    options: tuple[str, ...] = ()  # What the person adds to `mlsys new`
    time: str = ""
    entity: str = ""
    words: Mapping[str, Any] = field(default_factory=dict)


def _begin(rng: np.random.Generator) -> datetime:
    return datetime(
        int(rng.integers(2019, 2026)), int(rng.integers(1, 13)), int(rng.integers(1, 28)), tzinfo=UTC
    )


def _times(rng: np.random.Generator, n: int, days: int) -> list[datetime]:
    begin = _begin(rng)
    return [begin + timedelta(seconds=int(s)) for s in np.sort(rng.integers(0, days * 86400, n))]


_ZONES = (0, 60, -300, 330)
_CLOCKS = (
    "iso",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %I:%M %p",
    "%d.%m.%Y %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%d-%b-%Y %H:%M",
    "epoch",
    "ms",
)


def _clock(rng: np.random.Generator) -> Callable[[datetime], Any]:
    "How a table writes its moments."
    kind, zone = str(rng.choice(_CLOCKS)), timezone(timedelta(minutes=int(rng.choice(_ZONES))))
    if kind == "iso":
        return lambda t: t.astimezone(zone).isoformat()
    if kind in ("epoch", "ms"):
        return lambda t: int(t.timestamp()) * (1000 if kind == "ms" else 1)
    return lambda t: t.strftime(kind)


def _number(value: float, comma: bool) -> str:
    told = f"{value:,.2f}"
    return told.translate(str.maketrans(",.", ".,")) if comma else f"{value:.2f}"


def _write(rng: np.random.Generator, place: Path, rows: pl.DataFrame, kinds: tuple[str, ...]) -> Path:
    kind = str(rng.choice(kinds))
    path = place.with_name(place.name + kind.split("/")[0])
    if kind == ".parquet":
        rows.write_parquet(path)
    elif kind == ".jsonl":
        rows.write_ndjson(path)
    elif kind == ".tsv":
        rows.write_csv(path, separator="\t")
    elif kind == ".csv/;":
        text = rows.write_csv(separator=";")
        path.write_bytes(text.encode("cp1252", "replace") if rng.random() < 0.5 else text.encode("utf-8-sig"))
    elif kind == ".csv/16":
        path.write_bytes(rows.write_csv(separator="|").encode("utf-16"))
    else:
        rows.write_csv(path)
    return path


TEXT = (".csv", ".csv/;", ".tsv", ".csv/16", ".jsonl")
_PER_ROW = (
    ("expediente", "fecha_solicitud", "edad", "ingresos", "importe", "tipo", ("fijo", "temporal", "autónomo"),
     "impago", ("sí", "no"), "fecha_recobro", "dias_de_mora"),
    ("dossier", "date_demande", "âge", "revenu", "montant", "contrat", ("CDI", "CDD", "sans"),
     "défaut", ("oui", "non"), "date_recouvrement", "jours_de_retard"),
    ("ApplicationNo", "SubmittedAt", "ApplicantAge", "YearlyIncome", "Requested", "Employment", ("full", "part", "none"),
     "Rejected", (True, False), "AppealFiledOn", "DaysInAppeal"),
    ("wniosek", "złożono", "wiek", "dochód", "kwota", "umowa", ("stała", "czasowa", "brak"),
     "niespłacony", (1, 0), "data_windykacji", "dni_opóźnienia"),
)  # fmt: skip


def decisions(seed: int, place: Path, n: int = 3000) -> Strange:
    "A row for each decision, its request values, and two columns that were written afterwards."
    rng = np.random.default_rng(seed)
    w = _PER_ROW[seed % len(_PER_ROW)]
    at, clock = _times(rng, n, int(rng.integers(200, 700))), _clock(rng)
    income, amount = np.exp(rng.normal(10.2, 0.5, n)), np.exp(rng.normal(9, 0.6, n))
    age, kind = rng.integers(19, 75, n), rng.choice(w[6], n, p=[0.6, 0.25, 0.15])
    z = -1.0 + 1.2 * np.log(amount / income * 3) + 1.3 * (kind == w[6][1]) + 0.9 * (kind == w[6][2])
    bad = rng.random(n) < 1 / (1 + np.exp(-z))
    late = [t + timedelta(days=int(d)) for t, d in zip(at, rng.integers(20, 90, n), strict=True)]
    rows = pl.DataFrame({
        w[0]: [f"{'ABCX'[seed % 4]}-{700_000 + i}" for i in range(n)], w[1]: [clock(t) for t in at], w[2]: age,
        w[3]: income.round(2), w[4]: amount.round(2), w[5]: kind,
        w[9]: [clock(t) if b else None for t, b in zip(late, bad, strict=True)],
        w[10]: [int(d) if b else 0 for d, b in zip(rng.integers(1, 200, n), bad, strict=True)],
        w[7]: [w[8][0] if b else w[8][1] for b in bad],
    })  # fmt: skip
    file = _write(rng, place / f"decisions{seed}", rows, TEXT)
    return Strange(file, w[7], (w[9], w[10]), time=w[1], words={"id": w[0], "outcome": w[8][0]})


_WITH_OUTCOME = (
    ("lead_id", "client", "date_contact", "canal", ("téléphone", "courriel", "salon"), "durée", "clôturé_le", "signé", ("oui", "non")),
    ("anruf_nr", "kunde", "angerufen_am", "weg", ("Telefon", "Mail"), "minuten", "entschieden_am", "gekauft", ("ja", "nein")),
    ("VisitID", "PatientID", "CheckedIn", "Ward", ("A", "B", "C"), "WaitMinutes", "DischargedAt", "Readmitted", ("Y", "N")),
)  # fmt: skip


def outcomes(seed: int, place: Path, n: int = 4000) -> Strange:
    "Events of somebody who returns; what came of each is known days later, and not yet for the newest."
    rng = np.random.default_rng(seed + 1000)
    w = _WITH_OUTCOME[seed % len(_WITH_OUTCOME)]
    who, at, clock = rng.integers(1, 500, n), _times(rng, n, 300), _clock(rng)
    mood, kind = rng.normal(size=500), rng.choice(w[4], n)
    wait = rng.integers(1, 60, n)
    yes = rng.random(n) < 1 / (1 + np.exp(1.6 - 1.3 * mood[who] - 0.8 * (kind == w[4][0]) + 0.02 * wait))
    closed = [t + timedelta(days=float(d)) for t, d in zip(at, rng.gamma(2, 3, n), strict=True)]
    told = [c < at[-1] for c in closed]
    answer = [(w[8][0] if y else w[8][1]) if t else None for y, t in zip(yes, told, strict=True)]
    when = [clock(c) if t else None for c, t in zip(closed, told, strict=True)]
    own = {w[0]: range(90_000, 90_000 + n), w[1]: who, w[2]: [clock(t) for t in at], w[3]: kind, w[5]: wait}
    if seed % 2:
        rows, after = pl.DataFrame(own | {w[6]: when, w[7]: answer}), ()
    else:
        rows = pl.DataFrame(own)
        later = (
            pl.DataFrame({w[0]: own[w[0]], w[6]: when, w[7]: answer})
            .drop_nulls()
            .sample(fraction=1.0, seed=seed, shuffle=True)
        )
        after = ("--outcomes", str(_write(rng, place / f"answers{seed}", later, TEXT)))
    file = _write(rng, place / f"outcomes{seed}", rows, TEXT)
    return Strange(file, w[7], options=after, time=w[2], entity=w[1], words={"id": w[0], "outcome": w[8][0]})


_AMOUNTS = (
    ("trip", "pickup", "distance_km", "passengers", "zone", ("centre", "airport", "suburb"), "duration_min", 12.0),
    ("oferta", "dodano", "metraż", "pokoje", "dzielnica", ("Wola", "Praga", "Mokotów"), "cena", 9000.0),
    ("auftrag", "bestellt", "stückzahl", "farben", "werk", ("Nord", "Süd", "Ost"), "lieferzeit_tage", 3.0),
    ("pedido", "fecha", "peso", "bultos", "destino", ("norte", "sur", "islas"), "coste_total", 4.5),
)  # fmt: skip


HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "=1+cmd|' /C calc'!A0", "\u202efdp.exe", "zero\u200bwidth", "\x1b[2Jgone",
    "w" * 5000, "{{7*7}}", "</title></table><svg onload=alert(1)>", "javascript:alert(1)",
)  # fmt: skip


def _spoiled(seed: int, values: Sequence[str]) -> list[str]:
    "The same, with two in a hundred that would act where somebody looks, and one that never ends."
    rng = np.random.default_rng(seed + 9000)
    odd = [str(rng.choice(HOSTILE)) if rng.random() < 0.02 else str(value) for value in values]
    return [*odd[:7], "<script>" + "x" * 10_000_000, *odd[8:]]


def amounts(seed: int, place: Path, n: int = 3000) -> Strange:
    "What is asked for is a number; some of the other values are hostile."
    rng = np.random.default_rng(seed + 2000)
    w = _AMOUNTS[seed % len(_AMOUNTS)]
    at, clock, where = _times(rng, n, int(rng.integers(150, 500))), _clock(rng), rng.choice(w[5], n)
    size = np.exp(rng.normal(2.5, 0.7, n)).round(1)
    value = size * w[7] * (1 + 0.8 * (where == w[5][1])) * np.exp(rng.normal(0, 0.25, n))
    whole = seed % 2 == 0
    rows = pl.DataFrame({
        w[0]: [f"{HOSTILE[i % 97] if i % 97 < 6 else ''}{i:06x}" for i in rng.permutation(n) + 400_000], w[1]: [clock(t) for t in at],
        w[2]: size, w[3]: rng.integers(1, 6, n), w[4]: _spoiled(seed, where),
        w[6]: value.round().astype(int) + 1 if whole else value.round(2),
    })  # fmt: skip
    file = _write(rng, place / f"amounts{seed}", rows, (*TEXT, ".parquet"))
    return Strange(file, w[6], time=w[1], words={"id": w[0], "outcome": 30})


_TOPICS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"Rechnung": ("Rechnung", "Mahnung", "Betrag", "abgebucht", "Gutschrift"), "Technik": ("Absturz", "Fehler", "Anmeldung", "Passwort", "lädt"),
     "Versand": ("Paket", "Lieferung", "verspätet", "Adresse", "Bote"), "Lob": ("danke", "super", "zufrieden", "schnell", "prima")},
    {"счёт": ("счёт", "оплата", "возврат", "карта", "деньги"), "ошибка": ("ошибка", "вход", "пароль", "сломано", "виснет"),
     "доставка": ("посылка", "курьер", "адрес", "опоздала", "потеряна")},
    {"billing": ("invoice", "charged", "refund", "card", "payment"), "bug": ("error", "crash", "login", "blank", "broken"),
     "shipping": ("parcel", "late", "address", "courier", "lost"), "praise": ("thanks", "great", "love", "perfect", "fast"),
     "legal": ("gdpr", "delete", "contract", "lawyer", "consent")},
)  # fmt: skip
_FILLER = ("bitte heute noch einmal wegen meiner Sache ich habe seit gestern nichts gehört und warte".split(),
           "пожалуйста снова сегодня мой заказ не могу уже вчера помогите когда было".split(),
           "please the my is help with a since again not you when order today it was".split())  # fmt: skip


def texts(seed: int, place: Path, n: int = 2500) -> Strange:
    "Short texts of several classes, some of them wrongly sorted."
    rng = np.random.default_rng(seed + 3000)
    words, filler = _TOPICS[seed % 3], _FILLER[seed % 3]
    shares = np.array([0.45, 0.25, 0.15, 0.1, 0.05][: len(words)])
    topic = rng.choice(list(words), n, p=shares / shares.sum())
    said = [
        " ".join(rng.permutation([*rng.choice(words[t], 2), *rng.choice(filler, 6)]))
        + rng.choice([".", "!", "?", ""])
        for t in topic
    ]
    wrong = rng.random(n) < 0.08
    topic = np.where(wrong, rng.choice(list(words), n), topic)
    at, clock = _times(rng, n, 240), _clock(rng)
    names = (("vorgang", "eingang", "weg", "text", "thema"), ("номер", "дата", "канал", "сообщение", "тема"),
             ("ticket_no", "opened", "via", "body", "category"))[seed % 3]  # fmt: skip
    rows = pl.DataFrame({names[0]: [f"T{i}" for i in range(30_000, 30_000 + n)], names[1]: [clock(t) for t in at],
                         names[2]: rng.choice(["web", "app", "mail"], n), names[3]: said, names[4]: topic})  # fmt: skip
    kinds = (".csv", ".tsv", ".jsonl", ".csv/16")
    file = _write(rng, place / f"texts{seed}", rows, kinds)
    return Strange(
        file, names[4], time=names[1], words={"id": names[0], "outcome": str(topic[0]), "text": names[3]}
    )


_LOGS = (
    ("userId", "movieId", "timestamp"),
    ("visitante", "página", "visto_el"),
    ("member", "gate", "entered"),
    ("ip", "path", "time"),
)


def visits(seed: int, place: Path, people: int = 400) -> Strange:
    "A log of who visited what; some never return."
    rng = np.random.default_rng(seed + 4000)
    w, clock, begin, rows = _LOGS[seed % len(_LOGS)], _clock(rng), _begin(rng), list[tuple[Any, ...]]()
    names = [f"10.0.{i // 250}.{i % 250}" if w[0] == "ip" else int(i) * 7 + 100 for i in range(people)]
    what = [f"/p/{i}" if w[0] != "userId" else i for i in range(40)]
    for who in names:
        start = rng.uniform(0, 200)
        end, rate = min(start + rng.exponential(150), 330), np.exp(rng.normal(-1.7, 0.9))
        for day in rng.uniform(start, end, max(rng.poisson(rate * (end - start)), 1)):
            rows.append(
                (who, what[int(rng.integers(0, len(what)))], begin + timedelta(seconds=int(day * 86400)))
            )
    rows.sort(key=lambda row: row[2])
    frame = pl.DataFrame([(a, b, clock(t)) for a, b, t in rows], schema=list(w), orient="row")
    file = _write(rng, place / f"visits{seed}", frame, TEXT)
    return Strange(file, "", time=w[2], entity=w[0])


def dirty(seed: int, place: Path, n: int = 5000) -> Strange:
    "What a spreadsheet of another country left: marks, money, doubled lines, a sum below, another encoding."
    rng = np.random.default_rng(seed + 5000)
    comma, mark, coin = bool(seed % 2), ("?", "N/A", "-", "null")[seed % 4], ("€", "$", "£", "CHF")[seed % 4]
    at, split = _times(rng, n, 400), ";" if comma else ("|", "\t", ",")[seed % 3]
    day = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y")[seed % 3]
    head = [("Vertrag Nr.", "Abschluß", "Größe (m²)", "Prämie", "Region", "Kündigung"),
            ("Contract #", "Signed On", "Size", "Monthly Fee", "Area", "Cancelled?")][(seed + 1) % 2]  # fmt: skip
    fee, size, area = (
        np.exp(rng.normal(4, 0.5, n)),
        rng.integers(20, 200, n),
        rng.choice(["A 1", "B 2", "C 3"], n),
    )
    gone = rng.random(n) < 1 / (1 + np.exp(2.4 - 0.02 * (fee - 50) - 1.2 * (area == "B 2")))
    lines = [split.join(head)]
    for i in range(n):
        paid = f"{_number(fee[i] * 20, comma)} {coin}" if comma else f"{coin}{fee[i] * 20:,.2f}"
        paid = f'"{paid}"' if split == "," else paid
        here = mark if rng.random() < 0.03 else str(size[i])
        there = mark if rng.random() < 0.02 else area[i]
        said = ("ja" if gone[i] else "nein") if head[0].startswith("V") else ("Yes" if gone[i] else "No")
        lines.append(split.join([f"V{seed}{10_000 + i}", at[i].strftime(day), here, paid, there, said]))
    total = split.join(["Total", "", "", *[""] * 3][: len(head)]) if seed % 2 else "-- end of report --"
    text = "\r\n".join([*lines[:40], lines[39], lines[38], *lines[40:], total, ""])
    path = place / f"Dirty export {seed}.csv"
    path.write_bytes(text.encode(("cp1252", "utf-8-sig", "utf-16")[seed % 3]))
    return Strange(path, head[5], time=head[1], words={"id": head[0], "outcome": "ja"})


KINDS: dict[str, Callable[..., Strange]] = {
    "decisions": decisions, "outcomes": outcomes, "amounts": amounts, "texts": texts, "visits": visits, "dirty": dirty,
}  # fmt: skip
