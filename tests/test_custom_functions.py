"""A user's function as data: what is the same function, what is another one, and what is refused (fault: source text as identity)."""

import functools
import importlib
import json
import math
import sys
import textwrap
from itertools import count

import pytest

from mlsys_nb import features as f
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.features.custom_functions import (
    ChangedFunction,
    constant_of,
    constant_spec,
    function_spec,
    load_function,
)
from mlsys_nb.features.feature_set import from_spec, to_spec

orders = Events("orders", keys={"customer": "int"}, time="at", columns={"pence": "int", "shop": "text"})
spent, n = f.sum(orders, "pence", "30d"), f.count(orders, "30d")
NUMBERS = count()


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A function that writes and imports a team's package of two modules, and drops what was imported before."
    name = f"team{next(NUMBERS)}"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / name).mkdir()

    def make(scores, rates="RATE = 2\n"):
        for module, text in (("__init__", ""), ("scores", scores), ("rates", rates)):
            (tmp_path / name / f"{module}.py").write_text(textwrap.dedent(text).replace("TEAM", name))
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            del sys.modules[module]
        importlib.invalidate_caches()
        return importlib.import_module(f"{name}.scores")

    return make


def values(feature, xs=(3, 4, 30)):
    "What a feature of one request value gives."
    import polars as pl

    from mlsys_nb.system.clock import instant

    asked = pl.DataFrame({"customer": [1] * len(xs), "moment": [instant("2010-05-01")] * len(xs), "x": xs})
    none = pl.DataFrame(schema={"customer": pl.Int64, "at": pl.Datetime("us", "UTC")})
    features = FeatureSet("s", (feature.named("y"), f.count(orders, "30d")))
    return f.as_of(features, asked, {"orders": none})["y"].to_list()


x = f.request("x", "int")

LOOPED = """
from functools import partial
def plain(x, k=0):
    return x > k
made = []
for k in (1, 5, 100):
    def over(x, k=k):
        return x > k
    made.append(over)
def factory(k):
    def over(x):
        return x > k
    return over
def keyword(k):
    def over(x, *, limit=k):
        return x > limit
    return over
closures = [factory(k) for k in (1, 5, 100)]
keywords = [keyword(k) for k in (1, 5, 100)]
partials = [partial(plain, k=k) for k in (1, 5, 100)]
"""


@pytest.mark.parametrize("kind", ["made", "closures", "keywords", "partials"])
def test_fault_2_equal_text_with_other_constants_is_another_function(package, kind):
    made = getattr(package(LOOPED), kind)
    features = FeatureSet("s", tuple(f.apply(g, x, dtype="bool").named(f"f{i}") for i, g in enumerate(made)))
    assert len({feature.identity for feature in features.features}) == 3
    assert len(features.plan.steps) == 3
    assert [values(feature) for feature in features.features] == [
        [True] * 3,
        [False, False, True],
        [False] * 3,
    ]
    back = from_spec(json.loads(json.dumps(to_spec(features))))
    assert back == features and back.hash == features.hash
    assert [values(feature) for feature in back.features] == [
        values(feature) for feature in features.features
    ]


BASE = """
import math
from TEAM import rates
from TEAM.rates import RATE

TABLE = {"a": 1, "b": (2, 3)}
LIMIT = 10

def helper(x, by=1):
    return x * RATE + len(TABLE) * by

def score(x, base=1):
    return math.sqrt(helper(x) + base) + LIMIT + rates.RATE
"""
RATES = "RATE = 2\n"
SAME = {
    "a comment": lambda s, r: ("# why\n" + s.replace("return math", "# because\n    return math"), r),
    "a docstring": lambda s, r: (s.replace("    return math", '    "Scores."\n    return math'), r),
    "a docstring of what it calls": lambda s, r: (
        s.replace("    return x *", '    "Helps."\n    return x *'),
        r,
    ),
    "annotations": lambda s, r: (s.replace("(x, base=1):", "(x: int, base: int = 1) -> float:"), r),
    "white space": lambda s, r: (s.replace("helper(x) + base", "(helper( x )\n        + base)"), r),
    "a name it does not read": lambda s, r: (s + "OTHER = 3\n", r + "OTHER = 4\n"),
    "a place": lambda s, r: (s.replace("LIMIT = 10\n", "") + "LIMIT = 10\n", r),
}
OTHER = {
    "its code": lambda s, r: (s.replace("+ LIMIT", "- LIMIT"), r),
    "a default": lambda s, r: (s.replace("base=1", "base=2"), r),
    "a default of what it calls": lambda s, r: (s.replace("by=1", "by=2"), r),
    "what it calls": lambda s, r: (s.replace("x * RATE", "RATE + x"), r),
    "a global of its module": lambda s, r: (s.replace("LIMIT = 10", "LIMIT = 11"), r),
    "a global of what it calls": lambda s, r: (s.replace('"a": 1', '"a": 7'), r),
    "a global of another module of its package": lambda s, r: (s, r.replace("2", "3")),
    "a type of constant": lambda s, r: (s.replace("LIMIT = 10", "LIMIT = 10.0"), r),
    "an operator deep inside": lambda s, r: (s.replace("+ len", "- len"), r),
}


@pytest.mark.parametrize("change", SAME)
def test_fault_2_what_is_for_people_changes_nothing(package, change):
    features = FeatureSet("s", (f.apply(package(BASE, RATES).score, spent), n))
    spec = json.loads(json.dumps(to_spec(features)))
    again = package(*SAME[change](BASE, RATES))
    assert FeatureSet("s", (f.apply(again.score, spent), n)).hash == features.hash
    assert from_spec(spec) == features


@pytest.mark.parametrize("change", OTHER)
def test_fault_2_what_changes_the_result_changes_the_hash(package, change):
    features = FeatureSet("s", (f.apply(package(BASE, RATES).score, spent), n))
    spec = json.loads(json.dumps(to_spec(features)))
    again = package(*OTHER[change](BASE, RATES))
    assert FeatureSet("s", (f.apply(again.score, spent), n)).hash != features.hash
    if change == "a default":  # a default is a constant of the declaration, which comes back
        assert from_spec(spec).hash == features.hash
        assert from_spec(spec).features[0].params[0].__defaults__ == (1,)
        return
    with pytest.raises(ChangedFunction, match=r"scores:score .*make the set again"):
        from_spec(spec)


def test_fault_2_functions_of_c_and_partials_of_them(package):
    features = FeatureSet(
        "s",
        (
            f.apply(math.sqrt, x).named("root"),
            f.apply(functools.partial(math.pow, 2.0), x).named("power"),
            f.apply(float, x).named("float"),
        ),
    )
    back = from_spec(json.loads(json.dumps(to_spec(features))))
    assert back == features
    assert back["power"].params[0](3) == 8.0


def test_a_function_that_is_gone_names_itself(package):
    spec = to_spec(FeatureSet("s", (f.apply(package(BASE).score, spent), n)))
    package("def other(x):\n    return x\n")
    with pytest.raises(ChangedFunction, match=r"scores:score is gone"):
        from_spec(spec)


def test_a_function_that_calls_itself_and_one_that_is_called_twice(package):
    source = """
    def fact(x):
        return 1 if x < 2 else x * fact(x - 1)
    def even(x):
        return True if x == 0 else odd(x - 1)
    def odd(x):
        return False if x == 0 else even(x - 1)
    """
    module = package(source)
    specs = [function_spec(g) for g in (module.fact, module.even, module.odd)]
    assert [load_function(s)(4) for s in specs] == [24, True, False]


REFUSED = {
    "a lambda": ("score = lambda x: x", "give it a name in a module"),
    "a decorated function": (
        "import functools\ndef keep(g):\n    @functools.wraps(g)\n    def h(x): return g(x)\n    return h\n@keep\ndef score(x): return x",
        "undecorated",
    ),
    "a cached function": (
        "import functools\n@functools.cache\ndef score(x): return x",
        "wrap it in a function",
    ),
    "a method": ("class A:\n    def f(self, x): return x\nscore = A().f", "wrap it in a function"),
    "an object": ("class A:\n    def __call__(self, x): return x\nscore = A()", "wrap it in a function"),
    "a generator": ("def score(x):\n    yield x", "return one value"),
    "a coroutine": ("async def score(x):\n    return x", "return one value"),
    "a shadowed name": ("def g(x): return x\nscore = g\ndef g(x): return x + 1", "another function"),
    "a global that is set": ("N = 0\ndef score(x):\n    global N\n    N += 1\n    return N", "is pure"),
    "a counter in a closure": (
        "def make():\n    n = 0\n    def g(x):\n        nonlocal n\n        n += 1\n        return n\n    return g\nscore = make()",
        "is pure",
    ),
    "a random generator": (
        "import random\nR = random.Random(1)\ndef score(x): return R.random()",
        "reads constants and functions",
    ),
    "an object of its own package": (
        "class T:\n    k = 1\nt = T()\ndef score(x): return x + t.k",
        "reads constants and functions",
    ),
    "a list in a closure": (
        "def make(k):\n    def g(x): return x + k[0]\n    return g\nscore = make([1])",
        "constants are numbers",
    ),
    "an import of its own package inside": (
        "def score(x):\n    from TEAM import rates\n    return x",
        "at the top of the module",
    ),
    "a function that holds itself": (
        "def make():\n    def g(x): return x and g(x - 1)\n    return g\nscore = make()",
        "closes over itself",
    ),
    "a function of the system": ("from os import system as score", "of Python's library only"),
    "a dangerous builtin": ("score = eval", "of Python's own functions only"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_could_not_be_served_is_refused_at_its_declaration(package, what):
    source, why = REFUSED[what]
    module = package(source)
    with pytest.raises(ValueError, match=why):
        f.apply(module.score, spent)


def test_a_function_of_a_test_or_a_notebook_is_refused():
    def local(x):
        return x

    local.__module__ = "__main__"
    with pytest.raises(ValueError, match="export"):
        f.apply(local, spent)


def test_a_manifest_cannot_name_a_function_of_the_system():
    for name in ("os:system", "builtins:eval", "subprocess:getoutput", "__main__:x"):
        with pytest.raises(ValueError):
            load_function({"name": name})


def test_constants_read_back_as_themselves():
    odd = (0.0, -0.0, math.inf, -math.inf, math.nan, 1, True, None, "", "é", (1, (2.5,)), 10**30)
    assert repr(constant_of(json.loads(json.dumps(constant_spec(odd), allow_nan=False)))) == repr(odd)
