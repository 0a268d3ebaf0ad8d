"Guard: strict JSON and limits, against bodies that hypothesis makes."

import asyncio
import json
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.serving import request_guard as room
from mlsys_nb.serving.error_responses import Refusal, clipped, error_body
from mlsys_nb.serving.request_guard import MAX_DEPTH, RequestLimits, guard, read_json, read_object

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.binary(max_size=300))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_read_or_refused(body):
    try:
        value = read_json(body)
    except Refusal as e:
        assert e.status == 400 and json.loads(error_body(e))["error"]["rule"]
    else:
        assert json.loads(body) == value


@given(json_values)
@settings(max_examples=300, deadline=None)
def test_what_python_writes_is_read_back(value):
    read = read_json(json.dumps(value).encode())
    assert json.dumps(read) == json.dumps(value)


WORDS = ["1", "-0", "-0.0", "0", "1.5", "1e3", "1E400", "-1e-400", "9007199254740993", "9007199254740993.0", "9223372036854775807",
         "9223372036854775808", "18446744073709551616", "123456789012345678901234", "5e-324", "1.7976931348623157e308", "01", "+1", "1.",
         ".5", "NaN", "Infinity", "-Infinity", "nan", "true", "false", "null", "True", '"x"', '"{"', '"["', '"\\u0041"', '"\\ud800"',
         '"a\\"b"', '"\tx"', '"é\u2028"', '""', "[]", "[1]", "{}", '{"a":1}', "", "'a'", "1 2", "1,", "\ufeff"]  # fmt: skip
keys = st.sampled_from(['"customer_id"', '"a"', '"b"', '""', '"\\u0061"', "a", '"é"', "1"])
gaps = st.sampled_from(["", " ", "\n", "\t\r ", "\x0c", "\x00"])
flat_bodies = st.builds(
    lambda pairs, gap, ends: (ends[0] + "{" + ",".join(f"{gap}{k}{gap}:{v}{gap}" for k, v in pairs) + "}" + ends[1]).encode(),
    st.lists(st.tuples(keys, st.sampled_from(WORDS) | st.integers().map(str) | st.floats().map(repr)), max_size=4),
    gaps,
    st.tuples(st.sampled_from(["", " ", "\ufeff", "["]), st.sampled_from(["", "\n", "x", "]", "{}", "\x00"])),
)  # fmt: skip


def told(body):
    try:
        return repr(read_json(body))
    except Refusal as e:
        return (e.status, str(e))


@given(flat_bodies | st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode()))
@settings(max_examples=1500, deadline=None)
def test_the_quick_reader_says_what_the_strict_one_says(body):
    quick = told(body)
    with patch.object(room, "_flat", lambda body: None):
        assert told(body) == quick


def test_the_quick_reader_is_the_one_that_reads_what_is_usually_sent():
    with patch.object(room, "_DECODER", None):
        for said in ({"customer_id": 13080}, {"shop": "a 1", "amount": 12.5, "express": True, "note": None}):
            assert read_json(json.dumps(said).encode()) == said


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 900, 30_000])
def test_depth(depth):
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        body = opening * depth + b"1" + closing * depth
        if depth <= MAX_DEPTH:
            read_json(body)
        else:
            with pytest.raises(Refusal, match="deep"):
                read_json(body)
    wide = b"[" + b",".join([b"[]"] * 500) + b"]"
    assert len(read_json(wide)) == 500
    assert read_json(b'"' + b"[" * 500 + b'"') == "[" * 500


@given(
    st.from_type(object).filter(lambda x: True) | json_values | st.text() | st.integers(10**5000, 10**5001)
)
@settings(max_examples=100, deadline=None)
def test_clip_is_always_short_ascii(value):
    assert len(clipped(value)) <= 80 and clipped(value).isascii()


def test_duplicate_keys_at_any_depth():
    with pytest.raises(Refusal, match="twice"):
        read_json(b'[{"x": {"a": 1, "b": 2, "a": 3}}]')
    with pytest.raises(Refusal, match="JSON object"):
        read_object(b"[]", frozenset({"a"}))


def call(app, parts, path="/", headers=(), type_="http"):
    queue, sent = list(parts), []

    async def receive():
        return queue.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": type_, "method": "POST", "path": path, "headers": list(headers)}, receive, send))
    return sent


async def echo(scope, receive, send):
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def test_a_client_that_hangs_up_gets_no_answer_and_frees_its_place():
    app = guard(echo, RequestLimits(concurrency=1))
    assert (
        call(app, [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])
        == []
    )
    assert call(app, [{"type": "http.request", "body": b"x"}])[0]["status"] == 200


def test_websockets_are_not_served():
    assert call(guard(echo, RequestLimits()), [], type_="websocket") == []


def test_an_answer_that_has_begun_is_not_followed_by_another():
    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("in the middle")

    sent = call(guard(half, RequestLimits()), [{"type": "http.request", "body": b""}])
    assert [m["type"] for m in sent] == ["http.response.start"]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_cap_counts_all_parts(parts):
    messages = [
        {"type": "http.request", "body": p, "more_body": i < len(parts) - 1} for i, p in enumerate(parts)
    ]
    sent = call(guard(echo, RequestLimits(max_body=100)), messages)
    whole = b"".join(parts)
    assert sent[0]["status"] == (200 if len(whole) <= 100 else 413)
    if len(whole) <= 100:
        assert sent[1]["body"] == whole
