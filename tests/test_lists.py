"A column of lists on its way: delivered as CSV or JSON lines, in the lake, in history and in the serving store."

import json

import polars as pl
import pytest

from mlsys_nb import features as f
from mlsys_nb.data.column_schema import ContractError
from mlsys_nb.data.contract import Column, Contract, check
from mlsys_nb.data.event_inbox import InboxSource
from mlsys_nb.data.event_validation import Intake, Post
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import read, snapshot
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.data.stream_source import open_stream, take_in
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.system.clock import instant, micros
from mlsys_nb.system.settings import load_settings

baskets = f.Events("baskets", {"customer": "int"}, "at", {"products": "list", "pence": "int"})
features = f.FeatureSet(
    "baskets",
    (
        f.items(baskets, "products", "lifetime").named("items"),
        f.count_distinct(baskets, "products", "lifetime").named("products"),
        f.mode(baskets, "products", "lifetime").named("usual"),
        f.count(baskets, "lifetime", where=baskets["products"].contains("tea")).named("with_tea"),
        f.count(baskets, f.session("1h")).named("now"),
    ),
)
ROWS = [
    ["b1", 7, "2024-05-01T10:00:00", ["tea", "cup", "tea"], 500],
    ["b2", 7, "2024-05-01T10:30:00", ["cup"], 200],
    ["b3", 7, "2024-05-01T10:50:00", [], 0],
]
NAMES = ["basket", "customer", "at", "products", "pence"]


def contract(separator=""):
    kinds = ("text", "int", "time", "list", "int")
    columns = (
        Column(n, t, separator=separator if t == "list" else "") for n, t in zip(NAMES, kinds, strict=True)
    )
    return Contract("baskets", tuple(columns), id="basket", claims="at")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_lists_reach_features_from_every_form_of_file(tmp_path, form):
    here = load_settings(root=tmp_path / "root")
    folder = tmp_path / "delivered"
    folder.mkdir()
    frame = pl.DataFrame(ROWS, NAMES, orient="row", schema_overrides={"products": pl.List(pl.String)})
    if form == "csv":
        plain = frame.with_columns(pl.col("products").list.join(" | ")).with_columns(
            pl.when(pl.col("products") == "").then(pl.lit("|")).otherwise("products").alias("products")
        )
        plain.write_csv(folder / "one.csv")
    elif form == "jsonl":
        (folder / "one.jsonl").write_text("\n".join(json.dumps(row) for row in frame.to_dicts()) + "\n")
    else:
        frame.with_columns(pl.col("at").str.to_datetime()).write_parquet(folder / "one.parquet")
    now = instant("2024-05-01T11:00:00")
    source = FilesSource(
        "baskets", contract("|" if form == "csv" else ""), str(folder), known=lambda path: now
    )
    ingest(here, source, now)
    kept = read(here, snapshot(here, "baskets"))
    assert kept.sort("basket")["products"].to_list() == ['["tea","cup","tea"]', '["cup"]', "[]"]
    asked = pl.DataFrame(
        {"customer": [7], "moment": [now]}, schema_overrides={"moment": pl.Datetime("us", "UTC")}
    )
    expected = {"items": 4, "products": 2, "usual": "cup", "with_tea": 1, "now": 3}
    assert f.as_of(features, asked, {"baskets": kept}).select(features.names).to_dicts() == [expected]
    with open_online(here.online) as store:
        store.keep(features)
        store.write(baskets, kept)
        assert store.reader(features).read({"customer": 7}, now) == expected


def test_a_list_says_how_it_is_written():
    frame = pl.DataFrame([[*ROWS[0][:3], "tea|cup", 1]], NAMES, orient="row")
    with pytest.raises(ContractError, match="baskets.products must be list, the batch has String"):
        check(contract(), frame.with_columns(at=pl.lit(instant("2024-05-01"))))
    refused = check(contract(), frame, text=True)
    assert not refused.rows.height
    assert refused.quarantine["reason"].to_list() == ["products: tea|cup is not a list of texts"]
    written = frame.with_columns(products=pl.lit('[ "tea", "cup" ]'))
    for separator in ("", "|"):
        assert check(contract(separator), written, text=True).rows["products"].to_list() == ['["tea","cup"]']
    assert check(contract("|"), frame, text=True).rows["products"].to_list() == ['["tea","cup"]']
    with pytest.raises(ContractError, match="separator says how a column of type list"):
        Column("pence", "int", separator="|")


def test_text_that_is_no_list_is_refused_where_it_is_read():
    frame = pl.DataFrame(
        {"event_id": ["x"], "customer": [7], "at": [instant("2024-05-01")], "products": ["tea"], "pence": [1]}
    )
    asked = pl.DataFrame({"customer": [7], "moment": [instant("2024-05-02")]})
    with pytest.raises(ValueError, match="a list is a list of texts"):
        f.as_of(features, asked, {"baskets": frame})
    with pytest.raises(ValueError, match="two columns of one kind"):
        _ = baskets["products"] == baskets["products"]


def posted(here, source, events):
    "What became of each event, and what the lake then has."
    now = instant("2024-05-01T11:00:00")
    intake = Intake(here, source, lambda: now)
    receipt = intake.submit(Post(events)).result(10)
    with intake.box.changing() as box:
        box.append([{"visible": box.at.count, "known": micros(now)}])
    intake.close()
    ingest(here, source, now)
    return receipt.told, read(here, snapshot(here, source.name))


@pytest.mark.parametrize("separator", ["", "|"])
def test_fault_a_contract_with_a_list_took_no_events_in(tmp_path, separator):
    "Lists that are posted or streamed arrive as the same texts that files bring; what is no list is answered by name."
    events = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    numbers = {**events[0], "basket": "b4", "products": [7, 8, None]}
    wrong = [
        {**events[0], "basket": f"w{i}", "products": p}
        for i, p in enumerate(([1.5], [["tea"]], {"a": 1}, "tea", [True], 7))
    ]
    here = load_settings(root=tmp_path / "root")
    told, kept = posted(here, InboxSource("baskets", contract(separator)), [*events, numbers, *wrong])
    wrongly_split = separator == "|"  # a text without the separator is a list of one there
    assert [t.status for t in told] == ["accepted"] * 4 + [
        "accepted" if wrongly_split and p in ("tea", 7) else "quarantined"
        for p in (w["products"] for w in wrong)
    ]
    assert (
        "products: a list of texts or whole numbers in whole characters is wanted, got [1.5]"
        in told[4].reason
    )
    found = dict(kept.select("basket", "products").iter_rows())
    assert found | {"w3": "", "w5": ""} == {
        "b1": '["tea","cup","tea"]', "b2": '["cup"]', "b3": "[]", "b4": '["7","8"]', "w3": "", "w5": "",
    }  # fmt: skip


def test_a_stream_brings_lists(tmp_path):
    here, source = load_settings(root=tmp_path / "root"), InboxSource("baskets", contract())
    (tmp_path / "baskets.jsonl").write_text(
        "".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in ROWS)
    )
    intake = Intake(here, source, lambda: instant("2024-05-01T11:00:00"))
    [receipt] = take_in(open_stream(str(tmp_path / "baskets.jsonl")), {"baskets": intake})["baskets"]
    intake.close()
    assert [t.status for t in receipt.told] == ["accepted"] * 3
