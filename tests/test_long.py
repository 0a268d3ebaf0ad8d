"`make long`: each step is there, is not run again when it passed, and takes nothing out of the table that somebody wrote."

import sys
import threading

import long
import pytest


def step(name, code, **how):
    return long.Step(name, f"what {name} says", (sys.executable, "-c", code), **how)


def test_every_step_runs_files_that_are_there():
    files = {word for one in long.STEPS for word in one.command if word.startswith("tests/")}
    assert len(files) > 40 and not [name for name in files if not (long.ROOT / name).is_file()]


def test_the_table_keeps_what_no_step_writes(tmp_path):
    "The faults: whole sections went that somebody had written by hand, first those of no step, then those whose name has a space, then notes beside a step's words."
    before = (
        "# Checks\n\nhead\n\n## judgement: by hand\n\nkept\n\n## your own data: by hand\n\nkept too\n\n### a part: of it\n\n"
        "## past: old title\n\na note before\n\n`make long` on commit old:\n\n```text\nold words\n```\n\na note after\n\n```text\nof a hand\n```\n\n"
        "## kills: old title\n\nonly a note\n"
    )
    (tmp_path / "past.txt").write_text("new words \\1\n(3 s)")
    (tmp_path / "kills.txt").write_text("first words")
    after = long.table(before, list(long.STEPS), tmp_path, "abc")
    for kept in ("# Checks\n\nhead\n\n", "## judgement: by hand\n\nkept\n", "## your own data: by hand\n\nkept too\n\n### a part: of it",
                 "a note before\n\n`make long` on commit abc:\n\n```text\nnew words \\1\n(3 s)\n```\n\na note after\n\n```text\nof a hand\n```",
                 "`make long` on commit abc:\n\n```text\nfirst words\n```\n\nonly a note"):  # fmt: skip
        assert kept in after, kept
    assert "old words" not in after and "old title" not in after
    assert long.table(after, list(long.STEPS), tmp_path, "abc") == after


@pytest.mark.parametrize("beside", [True, False])
def test_a_step_that_passed_is_not_run_again_and_one_that_failed_is(tmp_path, beside):
    told = tmp_path / "told"
    code = f"open({str(told)!r}, 'a').write('x'); print('before'); print('== words'); print('more'); raise SystemExit({{}})"
    one, before = step("one", code.format(3), beside=beside), "# Checks\n\n## one: old\n\nby hand\n"
    assert not long.passed(one, tmp_path) and not (tmp_path / "one.txt").exists()
    assert "on commit abc, failed:\n\n```text\nwords\nmore\n(" in long.table(before, [one], tmp_path, "abc")
    assert long.passed(step("one", code.format(0), beside=beside), tmp_path)
    assert long.passed(step("one", code.format(0), beside=beside), tmp_path) and told.read_text() == "xx"
    after = long.table(before, [one], tmp_path, "abc")
    assert (
        "on commit abc:\n\n```text\nwords\nmore\n(" in after and "failed" not in after and "by hand" in after
    )


def test_two_steps_run_at_once_and_the_others_alone(tmp_path, monkeypatch, capsys):
    meet = "import sys, time, pathlib; mine, other = map(pathlib.Path, sys.argv[1:]); mine.touch(); end = time.time() + 60\nwhile not other.exists() and time.time() < end: time.sleep(.01)\nraise SystemExit(not other.exists())"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    both = tuple(
        long.Step(name, "waits for the other", (sys.executable, "-c", meet, *files), beside=True)
        for name, files in (("a", (a, b)), ("b", (b, a)))
    )
    busy, alone = threading.active_count(), step("c", "print('alone')")
    monkeypatch.setattr(long, "STEPS", (*both, alone))
    monkeypatch.setattr(long, "ROOT", tmp_path)
    monkeypatch.setattr(long, "TABLE", tmp_path / "LONG.md")
    monkeypatch.setattr(long, "state", lambda: "now")
    monkeypatch.setattr(long, "commit", lambda: "abc")
    monkeypatch.setattr(sys, "argv", ["long.py"])
    long.TABLE.write_text("# Checks\n\n## c: old\n")
    assert long.main() == 0 and threading.active_count() == busy
    out = capsys.readouterr().out
    assert (
        out.index("== c: ") > max(out.index("== a passed"), out.index("== b passed"))
        and "3 of 3 steps passed" in out
    )
    assert [line for line in long.TABLE.read_text().splitlines() if line.startswith("## ")] == [
        "## a: waits for the other",
        "## b: waits for the other",
        "## c: what c says",
    ]
