"""Evaluations as files: one of a version at a time, done in their order, a bounded number kept."""

from pathlib import Path
from typing import Any

import pytest

from cogrpo_core.exchange import policy_evaluations
from cogrpo_core.exchange.policy_evaluations import EvaluationBusyError, Evaluations
from cogrpo_core.exchange.training_records import ReusedKeyError, TrainingAwayError


def version(number: int) -> str:
    return f"20261124T14352239{number}Z-0123456789abcdef"


def end(evaluations: Evaluations, number: int, status: Any = "completed") -> None:
    record = evaluations.get(version(number))
    assert record is not None
    evaluations.write(record.model_copy(update={"status": status}))


def test_a_version_has_one_evaluation_at_a_time(tmp_path: Path) -> None:
    evaluations = Evaluations(tmp_path)
    first = evaluations.request(version(1), against="base", suite="s", prompts=30)
    assert Evaluations(tmp_path).get(version(1)) == first
    with pytest.raises(EvaluationBusyError):
        evaluations.request(version(1), against="base")
    evaluations.request(version(2), against="base")
    end(evaluations, 1)
    assert evaluations.request(version(1), against=version(2)).against == version(2)


def test_they_are_done_in_the_order_in_which_they_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = Evaluations(tmp_path)
    assert evaluations.next() is None
    clock = iter(range(1, 9))
    monkeypatch.setattr("time.time_ns", lambda: next(clock) * 1_000_000)
    for number in (2, 1, 3):
        evaluations.request(version(number), against="base")
    done = []
    for status in ("failed", "cancelled", "completed"):
        record = evaluations.next()
        assert record is not None
        evaluations.write(record.model_copy(update={"status": "running"}))
        assert evaluations.next() == evaluations.get(record.version)  # as after a restart
        evaluations.write(record.model_copy(update={"status": status}))
        done.append(record.version)
    assert done == [version(2), version(1), version(3)]
    assert evaluations.next() is None


def test_a_key_gives_the_same_evaluation_also_when_it_has_ended(tmp_path: Path) -> None:
    evaluations = Evaluations(tmp_path)
    evaluations.request(version(1), against="base", key="k", body="b")
    end(evaluations, 1, "failed")
    again = evaluations.request(version(1), against="base", key="k", body="b")
    assert again.status == "failed"
    for number, body in ((1, "other"), (2, "b")):
        with pytest.raises(ReusedKeyError):
            evaluations.request(version(number), against="base", key="k", body=body)


def test_a_wish_is_for_one_evaluation(tmp_path: Path) -> None:
    evaluations = Evaluations(tmp_path)
    evaluations.request(version(1), against="base")
    assert not evaluations.is_cancelled(version(1))
    evaluations.cancel(version(1))
    assert evaluations.is_cancelled(version(1))
    end(evaluations, 1, "cancelled")
    evaluations.request(version(1), against="base")
    assert not evaluations.is_cancelled(version(1))


def test_a_bounded_number_stays_and_what_waits_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_evaluations, "KEPT", 2)
    evaluations = Evaluations(tmp_path)
    evaluations.request(version(0), against="base")
    for number in range(1, 5):
        evaluations.request(version(number), against="base")
        end(evaluations, number)
    kept = [number for number in range(5) if evaluations.get(version(number)) is not None]
    assert kept == [0, 3, 4]


@pytest.mark.parametrize("name", ["", "base", "../trainer", version(1) + "/x"])
def test_no_version_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    evaluations = Evaluations(tmp_path)
    evaluations.cancel(name)
    assert evaluations.get(name) is None
    assert list(tmp_path.rglob("*.cancel")) == []


def test_a_damaged_record_is_said_and_not_guessed(tmp_path: Path) -> None:
    evaluations = Evaluations(tmp_path)
    evaluations.request(version(1), against="base")
    (tmp_path / "evaluations" / f"{version(1)}.json").write_text("{}")
    with pytest.raises(TrainingAwayError, match="damaged"):
        evaluations.get(version(1))
