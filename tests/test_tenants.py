"""Tenants, walked by commands: declared by one word, trained in one run, answered by their own version or by everybody's, kept apart by keys."""

import json
import logging
import shlex
from dataclasses import replace

import httpx
import pytest
import tenants_world as world
from caller import undescribed

from mlsys_nb.doors.cli import main
from mlsys_nb.loop.step_context import context
from mlsys_nb.problem.tenant_key import partition_of
from mlsys_nb.serving.service import running
from mlsys_nb.system.settings import ProblemError
from mlsys_nb.system.versions_table import version_rows

NOW = world.END.isoformat()


def said(capsys, *words: str, code: int = 0) -> str:
    "What a command says."
    capsys.readouterr()
    assert main(list(words)) == code, capsys.readouterr()
    done = capsys.readouterr()
    return done.out if code == 0 else done.err


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    "A folder in which `mlsys ingest` and `mlsys train` have run once."
    place = world.folder(tmp_path_factory.mktemp("shops") / "here", world.written(world.SHOPS, hard=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["ingest", "orders", "--now", NOW]) == 0
        assert main(["train", "orders", "-p", "n_trials=1", "--now", NOW]) == 0
    return place


@pytest.fixture
def here(shops, monkeypatch):
    monkeypatch.chdir(shops)
    return replace(world.settings_of(shops), reload_seconds=0.05)


def listed(capsys) -> dict[str, dict]:
    return {row["tenant"]: row for row in json.loads(said(capsys, "tenants", "orders", "--json"))}


def minted(capsys, name: str, *words: str) -> str:
    return json.loads(said(capsys, "keys", "add", name, *words, "--json"))["key"]


def client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)


def customer(shop: str, i: int = 0) -> dict:
    names = [*world.SHOPS, *world.HARD]
    return {"shop": shop, "customer": 1000 * names.index(shop) + i}


def test_one_training_serves_each_shop_that_differs_and_the_others_by_everybodys_version(here, capsys):
    rows = listed(capsys)
    assert set(rows) == {*world.SHOPS, *world.HARD}
    assert all(rows[shop]["version"] for shop in ("north", "south"))
    assert rows["tiny"]["version"] is None and "3 entities of at least 100" in rows["tiny"]["reason"]
    assert rows["always"]["version"] is None and "outcomes of the rarer kind" in rows["always"]["reason"]
    text = said(capsys, "tenants", "orders")
    assert "8 tenants, 6 looked at" in text and "north" in text and "\\u2603" in text and "☃" not in text
    assert "of tenant north" in said(capsys, "versions", "orders")
    found = said(
        capsys, "predict", "orders", "--entity", "shop=north", "--entity", "customer=5", "--now", NOW
    )
    assert json.loads(found)["version"] == rows["north"]["version"]
    found = said(
        capsys, "predict", "orders", "--entity", "shop=tiny", "--entity", "customer=3000", "--now", NOW
    )
    assert json.loads(found)["version"] == 1


def test_no_folder_is_named_as_a_tenant(here):
    at = context("orders", NOW, here)
    paths = [row.path for row in version_rows(at.control, "orders")]
    assert paths and all(
        path.startswith("orders/") and set(path[7:]) <= set("0123456789abcdef") for path in paths
    )
    assert not list(here.root.parent.rglob("*passwd*"))


def test_the_service_answers_each_by_its_own_and_says_which(here, capsys):
    rows, key = (
        listed(capsys),
        minted(capsys, "all", "--role", "predict", "--role", "view", "--role", "outcome"),
    )
    with running(here, "orders") as url, client(url, key) as ask:
        told = {shop: ask.post("/v1/orders/predictions", json=customer(shop)).json() for shop in rows}
        for shop, answer in told.items():
            own = rows[shop]["version"]
            assert (answer["tenant"], answer["served_by"]) == (shop, "tenant" if own else "pooled"), answer
            assert answer["version"] == (own or 1)
        many = ask.post("/v1/orders/predictions", json={"entities": [customer(shop) for shop in rows]}).json()
        for one, shop in zip(many["predictions"], rows, strict=True):
            same = ("prediction", "version", "tenant", "served_by", "action")
            assert {n: one[n] for n in same} == {n: told[shop][n] for n in same}
        kept = ask.get(f"/v1/orders/decisions/{told['north']['decision_id']}").json()
        assert (kept["tenant"], kept["served_by"]) == ("north", "tenant")
        described = ask.get("/openapi.json").json()
        assert undescribed(described, "orders", told["north"], kept) == set(), (
            "the description knows of tenants"
        )
        why = ask.post("/v1/orders/explanations", json=customer("north")).json()
        assert why["version"] == rows["north"]["version"]
    replayed = said(capsys, "replay", told["north"]["decision_id"])
    assert "north" in replayed or "same" in replayed


def test_a_batch_answers_as_the_service_does(here, capsys):
    from mlsys_nb.loop.pipeline import score

    rows, at = listed(capsys), context("orders", NOW, here)
    frame = score(at).batch.frame
    for shop, row in rows.items():
        assert frame.filter(shop=shop)["version"].unique().to_list() == [row["version"] or 1]
    whom = frame.filter(shop="south").row(0, named=True)
    words = ["--entity", "shop=south", "--entity", f"customer={whom['customer']}", "--now", NOW]
    one = json.loads(said(capsys, "predict", "orders", *words))
    assert (one["prediction"], one["version"]) == (whom["score"], whom["version"])


def test_a_key_of_one_shop_learns_nothing_of_another(here, capsys):
    only = ("--role", "predict", "--role", "outcome", "--role", "view", "--problems", "orders", "--tenant")
    mine, theirs = minted(capsys, "north-app", *only, "north"), minted(capsys, "south-app", *only, "south")
    with running(here, "orders") as url, client(url, mine) as north, client(url, theirs) as south:
        path = "/v1/orders/predictions"
        first = north.post(path, json=customer("north"))
        assert first.status_code == 200
        refused = [
            north.post(path, json=body)
            for body in (
                customer("south"),
                {"shop": "south", "customer": 987654321},  # nobody
                {"shop": "nowhere", "customer": 1},
                {"entities": [customer("north"), customer("south")]},
            )
        ]
        assert {r.status_code for r in refused} == {403}
        assert len({r.text for r in refused}) == 1, "what exists and what does not are refused alike"
        assert north.post("/v1/orders/explanations", json=customer("south")).status_code == 403
        twice = [ask.post(path, json={**customer(shop), "request_id": "monday"}) for ask, shop in ((north, "north"), (south, "south"))]  # fmt: skip
        assert [r.status_code for r in twice] == [200, 200], "who else uses a name is nobody's business"
        assert [r.json()["tenant"] for r in twice] == ["north", "south"]
        theirs_of = south.post(path, json=customer("south")).json()["decision_id"]
        unknown = theirs_of[:-4] + ("aaaa" if theirs_of[-4:] != "aaaa" else "bbbb")
        for ask in (
            lambda i: north.get(f"/v1/orders/decisions/{i}"),
            lambda i: north.post("/v1/orders/outcomes", json={"decision_id": i, "outcome": True}),
        ):
            foreign, nobodys = ask(theirs_of), ask(unknown)
            assert foreign.status_code == nobodys.status_code == 404
            assert foreign.text.replace(theirs_of, "ID") == nobodys.text.replace(unknown, "ID")
        assert north.get(f"/v1/orders/decisions/{first.json()['decision_id']}").status_code == 200
        assert south.get(f"/v1/orders/decisions/{theirs_of}").status_code == 200
        closed = [
            north.get("/v1/orders/model"),
            north.get("/v1/orders/contradictions"),
            north.get("/metrics"),
            north.post("/v1/orders/batches", json={"entities": [customer("south")]}),
            north.post("/invocations", json={"dataframe_records": [customer("south")]}),
            north.post("/v2/models/orders/infer", json={"inputs": []}),
            north.post("/v1/events/orders", json={}),
        ]
        assert {r.status_code for r in closed} <= {403, 404}, [r.status_code for r in closed]


def test_a_shop_goes_back_to_everybodys_version_and_is_held(here, capsys):
    own = listed(capsys)["blind"]["version"]
    assert own
    key = minted(capsys, "walker", "--role", "predict")
    with running(here, "orders") as url, client(url, key) as ask:
        asked = lambda: ask.post("/v1/orders/predictions", json=customer("blind")).json()
        assert asked()["version"] == own
        back = said(capsys, "rollback", "orders", "--tenant", "blind", "--reason", "complaints", "--now", NOW)
        assert "the pooled version of orders/tenant-" in back
        for _ in range(200):
            if asked()["served_by"] == "pooled":
                break
        assert asked()["version"] == 1
        printed = shlex.split(back.splitlines()[-1])
        assert "may promote" in said(capsys, *printed[1:], "--now", NOW)
        again = said(
            capsys, "promote", "orders", str(own), "--tenant", "blind", "--reason", "mended", "--now", NOW
        )
        assert f"version {own} of orders/tenant-" in again
    wrong = said(
        capsys, "promote", "orders", str(own), "--tenant", "north", "--reason", "x", "--now", NOW, code=2
    )
    assert "a version answers for whom it was trained" in wrong
    wrong = said(capsys, "promote", "orders", str(own), "--reason", "x", "--now", NOW, code=2)
    assert "a version answers for whom it was trained" in wrong


def test_a_damaged_version_of_a_shop_is_answered_by_everybodys_and_the_answer_says_so(here, capsys, caplog):
    own, key = listed(capsys)["south"]["version"], minted(capsys, "damage", "--role", "predict")
    at = context("orders", NOW, here)
    [row] = [r for r in version_rows(at.control, "orders") if r.version == own]
    file = here.models / row.path / "model.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b" ")
    try:
        with caplog.at_level(logging.ERROR), running(here, "orders") as url, client(url, key) as ask:
            answer = ask.post("/v1/orders/predictions", json=customer("south")).json()
            assert answer["version"] == 1 and answer["fallback"] == f"version 1 instead of version {own}"
            assert ask.post("/v1/orders/predictions", json=customer("north")).json()["served_by"] == "tenant"
    finally:
        file.write_bytes(whole)
    assert f"version {own} answers for no tenant" in caplog.text


@pytest.mark.parametrize(
    ("per", "wrong"),
    [("store", "known: ['customer', 'shop']"), ("basket", "known: ['customer', 'shop']")],
)
def test_a_key_that_is_none_is_refused_when_it_is_declared(per, wrong):
    with pytest.raises(ProblemError, match=wrong.replace("[", r"\[").replace("]", r"\]")):
        replace(world.problem, per=per)


def test_mistakes_at_the_command_are_said_clearly(here, capsys):
    words = ("keys", "add", "x", "--role", "predict", "--tenant", "north")
    assert "a key is bound to tenants of problems" in said(capsys, *words, code=2)
    refused = ("rollback", "orders", "--tenant", "tiny", "--reason", "x", "--now", NOW)
    assert "a rollback needs an earlier champion" in said(capsys, *refused, code=2)


def test_names_that_look_alike_are_different_shops():
    names = ["north", "north ", "NORTH", "%", "_", "../../etc/passwd", "x" * 10_000, "\x1b[31m"]
    assert len({partition_of("orders", name) for name in names}) == len(names)


def trained(place, frame, *moments) -> list[dict[str, dict]]:
    "What was decided of each shop, training by training."
    from mlsys_nb.loop.ingest_step import ingest_due
    from mlsys_nb.loop.pipeline import train
    from mlsys_nb.loop.tenant_training import noted_round

    here, found = world.settings_of(world.folder(place, frame)), []
    for moment in moments:
        ingest_due(context("orders", moment.isoformat(), here))
        train(context("orders", moment.isoformat(), here), n_trials=1)
        last = noted_round(context("orders", moment.isoformat(), here).control, "orders")
        found.append({row["tenant"]: row for row in last["tenants"]})
    return found


def test_shops_that_are_alike_keep_everybodys_version(tmp_path):
    shops = {f"s{i}": 1.2 for i in range(8)}
    [said] = trained(tmp_path, world.written(shops, people=130, seed=1), world.END)
    assert {row["decision"] for row in said.values()} == {"refused"}
    assert not any(row["version"] for row in said.values())


def test_a_later_training_refreshes_what_a_shop_has_and_the_same_training_again_changes_nothing(tmp_path):
    frame = world.written({"north": 1.8, "south": -1.8, "turns": -1.8}, seed=3)
    early = world.START + 18 * world.WEEK
    first, later, again = trained(tmp_path, frame, early, world.END, world.END)
    assert first["north"]["version"] and first["south"]["version"]
    assert later["north"]["version"] > first["north"]["version"]
    assert "not worse" in later["north"]["reason"] and again == later
