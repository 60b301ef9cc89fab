"""Which message won or lost a conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_iterppo.cli import main
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data.logs import write_conversations
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.evaluation.attribution import Score, attribute, draw

TALK = Conversation(
    "talk", (Turn("hello", "shoes?"), Turn("yes", "buy now!", reward=0.0)), closing="no thanks", outcome=0.0
)
SCORES = [Score(1, 0.5, 0.4), Score(3, 0.2, 0.7)]


def write_scores(path: Path, scores: list[Score] = SCORES) -> None:
    lines = [json.dumps({"id": "talk", "turn": s.turn, "q": s.q, "v": s.v}) for s in scores]
    path.write_text("\n".join(['{"id": "other", "turn": 1, "q": 0.1, "v": null}', *lines]) + "\n", encoding="utf-8")


def test_every_message_has_what_it_changed_and_the_changes_add_up() -> None:
    steps = attribute(TALK, SCORES)
    assert [(s.before, s.after) for s in steps] == [(None, 0.4), (0.4, 0.5), (0.5, 0.7), (0.7, 0.2), (0.2, None)]
    assert sum(s.change for s in steps if s.change is not None) == pytest.approx(0.2 - 0.4)
    assert min((s for s in steps if s.change is not None), key=lambda s: s.change or 0).text == "buy now!"


def test_without_v_a_message_is_compared_with_the_one_before() -> None:
    steps = attribute(TALK, [Score(1, 0.5, None), Score(3, 0.2, None)])
    assert [s.change for s in steps] == [None, None, None, pytest.approx(-0.3), None]


def test_scores_of_other_messages_are_refused() -> None:
    with pytest.raises(ConfigError, match="score the same file again"):
        attribute(TALK, SCORES[:1])


def test_the_command_prints_a_table_and_draws_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs, scores, plot = tmp_path / "logs.jsonl", tmp_path / "scores.jsonl", tmp_path / "plot.svg"
    write_conversations(logs, [TALK])
    write_scores(scores)
    words = ["attribute", str(logs), str(scores), "--id", "talk"]
    assert main([*words, "-o", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "| 3 | agent | buy now! | 0.70 | 0.20 | -0.50 |" in printed and "outcome: 0" in printed
    assert plot.read_text(encoding="utf-8").startswith("<?xml")
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["messages"][3]["change"] == pytest.approx(-0.5) and found["outcome"] == 0.0


def test_a_plots_suffix_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs, scores = tmp_path / "logs.jsonl", tmp_path / "scores.jsonl"
    write_conversations(logs, [TALK])
    write_scores(scores)
    words = ["attribute", str(logs), str(scores), "--id", "talk", "-o"]
    for name, begins in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG\r\n"), ("new/a.PDF", b"%PDF-")):
        assert main([*words, str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(begins)
    capsys.readouterr()
    for name in ("a.jpg", "a"):
        assert main([*words, str(tmp_path / name)]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert f"{name}: a plot is written as .svg, .png or .pdf" in printed.err and not (tmp_path / name).exists()
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"logs.jsonl", "scores.jsonl", "a.svg", "a.png", "new"}, "nothing half-written stays"


def test_one_conversation_gives_one_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.pdf"):
        draw(attribute(TALK, SCORES), "talk", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"CreationDate" not in (tmp_path / "a.pdf").read_bytes()


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        ('{"id": "talk", "turn": 1}', "talk", "scores.jsonl:1: not a score"),
        ("[]", "talk", "scores.jsonl:1: not a score"),
        ('{"id": "talk", "turn": 1, "q": 0.5}', "nobody", "no scores of a conversation 'nobody'"),
        ('{"id": "gone", "turn": 1, "q": 0.5}', "gone", "no conversation 'gone'"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, name: str, said: str
) -> None:
    logs, scores = tmp_path / "logs.jsonl", tmp_path / "scores.jsonl"
    write_conversations(logs, [TALK])
    scores.write_text(line + "\n", encoding="utf-8")
    assert main(["attribute", str(logs), str(scores), "--id", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and said in printed.err
