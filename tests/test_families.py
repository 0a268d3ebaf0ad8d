"Every family, link and form: against scikit-learn, against itself alone and in company, and against what intervals promise."

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import dataset

from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.link_functions import Interval, Learner, Softmax, softmax
from mlsys_nb.learning.train import fit
from mlsys_nb.release.package import Model, PackageError, build, load, open_package, seal, serving_form
from mlsys_nb.system.settings import load_settings

START = datetime(2020, 1, 1, tzinfo=UTC)
WORDS = "the room was clean and quiet staff never came again lovely view noisy street".split()


def rows(seed: int, n: int = 400, k: int = 3) -> pl.DataFrame:
    "Numbers and categories with holes, a text, and an outcome of each kind."
    rng = np.random.default_rng(seed)
    spent, place = rng.lognormal(1, 2, n), rng.integers(0, 8, n)
    signal = np.log(spent) + place / 4 + rng.normal(0, 1, n)
    kind = np.clip((signal - signal.min()) / np.ptp(signal) * k, 0, k - 1).astype(int)
    kind[:k] = np.arange(k)
    said = [f"{WORDS[i % len(WORDS)]} {' '.join(rng.choice(WORDS, 3))} {i}" for i in range(n)]
    frame = pl.DataFrame(
        {
            "spent": spent, "place": [f"place {p}" for p in place], "said": said, "amount": signal * 7,
            "event": (signal > np.median(signal)).astype(np.int8), "kind": [f"k{i:02}" for i in kind],
            "moment": [START + timedelta(days=int(d)) for d in np.sort(rng.integers(0, 40, n))],
        }
    )  # fmt: skip
    holes = {name: pl.Series(rng.random(n) < 0.1) for name in ("spent", "place", "said")}
    return frame.with_columns(pl.when(~hole).then(pl.col(name)).alias(name) for name, hole in holes.items())


FEATURES = ["spent", "place", "said"]
STRANGE = pl.DataFrame(
    {
        "spent": [None, -1e300, 1e300, 0.0], "place": ["Atlantis", None, "", "place 1"],
        "said": [None, "", "\U0001f600 never seen \u202e", "the room"],
    }
)  # fmt: skip
KINDS = {"logistic": "event", "identity": "amount", "softmax": "kind"}


def learner(link: str, k: int = 3) -> Learner:
    return Learner(link, tuple(f"k{i:02}" for i in range(k)) if link == "softmax" else ())


def served(fitted) -> Model:
    return Model(*serving_form(fitted), fitted.link, {})


CASES = [
    (link, family, rule)
    for link, rules in {
        "logistic": (Rule.feature("spent", "likelier", "m"), Rule.previous("place"), Rule.majority(), Rule.table("place", "spent")),
        "identity": (Rule.feature("spent", "more", "m"), Rule.previous("spent"), Rule.median(), Rule.table("place")),
        "softmax": (Rule.previous("place"), Rule.majority(), Rule.table("place", "spent")),
    }.items()
    for family, rule in [("linear", None), ("boosting", None), *(("rule", rule) for rule in rules)]
]  # fmt: skip


@pytest.mark.parametrize(("link", "family", "rule"), CASES, ids=lambda x: getattr(x, "kind", x))
def test_alone_in_company_and_in_service_every_family_says_the_same_bits(link, family, rule):
    frame = rows(1)
    params = {"max_iter": 20} if family == "boosting" else {}
    fitted = fit(family, frame, FEATURES, learner=learner(link), rule=rule, params=params, label=KINDS[link])
    model = served(fitted)
    asked = pl.concat([frame.select(FEATURES), STRANGE])
    p = model.predict(asked)
    assert p.shape == {"logistic": (404,), "identity": (404, 3), "softmax": (404, 3)}[link]
    assert np.isfinite(p).all() and np.abs(p - fitted.predict(asked)).max() <= 1e-12 * np.abs(p).max()
    alone = np.array([model.predict_one(row) for row in asked.to_dicts()])
    assert alone.tobytes() == p.tobytes()
    for size in (2, 7, 257):
        parts = [model.predict(asked[i : i + size]) for i in range(0, asked.height, size)]
        assert np.concatenate(parts).tobytes() == p.tobytes()
    assert model.predict(asked[:0]).shape[0] == 0
    many = model.predict(pl.concat([asked] * (20_000 // asked.height)))  # More than are taken at a time
    assert many.tobytes() == p.tobytes() * (len(many) // len(p))
    if link == "softmax":
        assert np.abs(p.sum(axis=1) - 1).max() < 1e-14 and (p > 0).all()
    if link == "identity":
        assert (p[:, 1] <= p[:, 0]).all() and (p[:, 0] <= p[:, 2]).all()


@given(st.integers(0, 10**6), st.integers(2, 20))
@settings(max_examples=15, deadline=None)
def test_boosted_forms_agree_with_scikit_learn(seed, k):
    frame = rows(seed, 300, k)
    params = {"max_iter": 6, "min_samples_leaf": 5}
    asked = pl.concat([frame.select(FEATURES), STRANGE])
    amount = fit("boosting", frame, FEATURES, learner=learner("identity"), params=params, label="amount")
    X = amount.encoder.transform(asked)
    assert served(amount).form.raw(X)[:, 0].tobytes() == amount.estimator.predict(X).tobytes()
    kind = fit("boosting", frame, FEATURES, learner=learner("softmax", k), params=params, label="kind")
    plain = replace(kind.link, temperature=1.0)
    assert np.abs(plain(served(kind).form.raw(X)) - kind.estimator.predict_proba(X)).max() < 1e-13


@given(st.integers(0, 10**6), st.integers(2, 20))
@settings(max_examples=10, deadline=None)
def test_linear_forms_agree_with_scikit_learn(seed, k):
    from sklearn.linear_model import LogisticRegression, Ridge

    frame, numbers = rows(seed, 300, k), ["spent", "place"]
    kind = fit("linear", frame, numbers, learner=learner("softmax", k), label="kind")
    X, y = kind.encoder.transform(frame), learner("softmax", k).outcomes(frame["kind"])
    design = np.column_stack([t.standard(X) for t in kind.estimator.terms])
    own = replace(kind.link, temperature=1.0)(served(kind).form.raw(X))
    theirs = LogisticRegression(C=0.1, max_iter=2000, tol=1e-6).fit(design, y).predict_proba(design)
    assert np.abs(own - theirs).max() < 1e-12
    amount = fit("linear", frame, numbers, learner=learner("identity"), label="amount")
    theirs = Ridge(alpha=10.0, solver="cholesky").fit(design, frame["amount"].to_numpy()).predict(design)
    assert np.abs(served(amount).form.raw(X)[:, 0] - theirs).max() < 1e-9


@pytest.mark.parametrize("most", [2, 8, 12, 20, 40, 70])
def test_trees_of_any_size_say_the_same_by_bits_and_by_walking(most, monkeypatch):
    "Trees of 8, 16, 32, 64 leaves have a word of their own, larger ones walk; missing and infinite values, and a category not met."
    frame = rows(most, 3_000)
    params = {"max_iter": 7, "max_leaf_nodes": most, "min_samples_leaf": 2}
    fitted = fit("boosting", frame, FEATURES, learner=learner("softmax"), params=params, label="kind")
    form = served(fitted).form
    X = fitted.encoder.transform(pl.concat([frame.select(FEATURES), STRANGE]))
    X = np.concatenate([X, [[np.inf, np.nan, np.nan], [-np.inf, 0.0, 3.0], [np.nan, np.nan, np.nan]]])
    leaves = form.alone(X.shape[1])
    assert (leaves.word if leaves else None) == {2: 1, 8: 1, 12: 2, 20: 4, 40: 8, 70: None}[most]
    told = [form.raw(X), np.concatenate([form.raw(X[i : i + 1]) for i in range(len(X))])]
    monkeypatch.setitem(vars(form), "one", None)
    assert {raw.tobytes() for raw in told} == {form.raw(X).tobytes()}
    assert form.raw(X[:0]).shape == (0, 3)


def test_words_decide_where_nothing_else_does():
    rng = np.random.default_rng(0)
    good = rng.random(1500) < 0.5
    texts = [
        f"{'lovely' if g else 'noisy'} {' '.join(rng.choice(WORDS[:9], 4))} {i}" for i, g in enumerate(good)
    ]
    frame = pl.DataFrame({"said": texts, "label": good.astype(np.int8), "moment": [START] * 1500})
    model = fit("linear", frame[:1000], ["said"])
    assert model.encoder.columns[0].kind == "text"
    p = served(model).predict(frame[1000:])
    assert ((p > 0.5) == good[1000:]).mean() > 0.97
    assert (
        served(model).predict_one({"said": "Lovely!"})
        > 0.8
        > 0.2
        > served(model).predict_one({"said": "NOISY"})
    )


@pytest.mark.parametrize("link", KINDS)
@pytest.mark.parametrize("family", ["linear", "boosting", "rule"])
def test_a_package_of_any_kind_replays_to_the_bit_and_a_changed_number_is_refused(tmp_path, link, family):
    data = dataset()
    extra = rows(3, data.frame.height).select("said", "amount", "kind", "event")
    data = replace(data, frame=data.frame.hstack(extra))
    features, params = [*data.features, "said"], {"max_iter": 15} if family == "boosting" else {}
    about = {"learner": learner(link), "rule": Rule.table(data.features[0]), "params": params}
    package = build(fit(family, data.frame, features, label=KINDS[link], **about), data)
    assert json.loads(package.files["model.json"])["link"]["kind"] == {"identity": "interval"}.get(link, link)
    seal(package, tmp_path / "p")
    assert (
        load(tmp_path / "p").predict(data.frame).tobytes()
        == open_package(package).predict(data.frame).tobytes()
    )
    golden = json.loads(package.files["golden.json"])
    golden["predictions"][3][-1] = (0.125).hex()
    files = {**package.files, "golden.json": json.dumps(golden).encode()}
    with pytest.raises(PackageError):
        seal(replace(package, files=files), tmp_path / "q")
        load(tmp_path / "q")


def test_a_class_that_training_never_met_has_a_share_and_others_share_the_rest():
    frame = rows(5).filter(pl.col("kind") != "k01")
    fitted = fit("linear", frame, FEATURES, learner=learner("softmax"), label="kind")
    p = served(fitted).predict(frame)
    assert (p[:, 1] > 0).all() and (p[:, 1] < 0.01).all() and np.abs(p.sum(axis=1) - 1).max() < 1e-14
    assert isinstance(fitted.link, Softmax) and fitted.link.present == (0, 2)


def test_softmax_of_enormous_sums_is_finite():
    z = np.array([[1e308, -1e308, 0.0], [-1e308, -1e308, -1e308]])
    assert np.isfinite(softmax(z)).all() and np.abs(softmax(z).sum(axis=1) - 1).max() < 1e-15


# Intervals -------------------------------------------------------------------------------------------------------------


def traffic() -> tuple[pl.DataFrame, list[str], Rule]:
    "Cars an hour on a motorway, six years."
    raw = pl.read_csv(load_settings().raw / "metro_traffic_volume.csv.gz").unique(
        "date_time", keep="first", maintain_order=True
    )
    raw = raw.with_columns(at=pl.col("date_time").str.to_datetime(time_zone="UTC"))
    week = raw.select(pl.col("at") + timedelta(days=7), last_week=pl.col("traffic_volume"))
    hours = raw.join(week, on="at", how="left").sort("at")
    found = hours.select(
        "last_week", "temp", "weather_main", hour=pl.col("at").dt.hour(), weekday=pl.col("at").dt.weekday(),
        moment=pl.col("at").dt.truncate("1d"), label=pl.col("traffic_volume").cast(pl.Float64),
    )  # fmt: skip
    return found, ["last_week", "temp", "weather_main", "hour", "weekday"], Rule.table("hour", "weekday")


def made(kind: str) -> tuple[pl.DataFrame, list[str], Rule]:
    "Heavy tails whose spread grows with what is expected; or few distinct values, most of them zero."
    rng = np.random.default_rng(11)
    x, z = rng.lognormal(2, 1.2, 16_000), rng.integers(0, 6, 16_000)
    heavy = x * (1 + z) * rng.lognormal(0, 0.9, 16_000) + rng.standard_t(2, 16_000) * x * 0.2
    few = np.clip(rng.poisson(np.exp(0.3 * np.log(x) - 1.6 + 0.1 * z)), 0, 4).astype(float)
    moments = [START + timedelta(days=int(d)) for d in np.sort(rng.integers(0, 200, 16_000))]
    y = heavy if kind == "heavy" else few
    return pl.DataFrame({"x": x, "z": z, "moment": moments, "label": y}), ["x", "z"], Rule.table("z")


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("world", ["traffic", "heavy", "few"])
def test_an_interval_holds_as_often_as_it_says(world, coverage):
    frame, features, rule = traffic() if world == "traffic" else made(world)
    days = frame["moment"].unique().sort()
    cut = days[int(len(days) * 0.75)]
    early, late = frame.filter(pl.col("moment") < cut), frame.filter(pl.col("moment") >= cut)
    y = late["label"].to_numpy()
    for family in ("rule", "linear", "boosting"):
        fitted = fit(family, early, features, learner=Learner("identity", coverage=coverage), rule=rule)
        p = fitted.predict(late)
        held = (p[:, 1] <= y) & (y <= p[:, 2])
        assert isinstance(fitted.link, Interval)
        # Never less often than said, beyond chance; of few values a bound cannot cut a part off, so more often.
        assert coverage - 0.03 < held.mean() < (1.01 if world == "few" else coverage + 0.09), (
            family,
            held.mean(),
        )
        large = p[:, 0] > np.quantile(p[:, 0], 0.75)
        assert held[large].mean() > coverage - 0.05, (family, "where much is expected", held[large].mean())
