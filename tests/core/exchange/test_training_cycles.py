"""Cycles as files: one at a time, whole whoever writes, and a place for one trainer."""

import threading
from pathlib import Path

import pytest

from cogrpo_core.exchange.training_cycles import CycleBusyError, Cycles
from cogrpo_core.exchange.training_records import ReusedKeyError, TrainingAwayError


def test_of_many_that_ask_at_once_one_gets_a_cycle(tmp_path: Path) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        try:
            outcomes.append(Cycles(tmp_path).request("request").id)
        except CycleBusyError as error:
            outcomes.append(error.running)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (record,) = Cycles(tmp_path).records()
    assert outcomes == [record.id] * 8


def test_a_key_outlives_the_cycle(tmp_path: Path) -> None:
    cycles = Cycles(tmp_path)
    record = cycles.request("request", key="k", body="b")
    cycles.write(record.model_copy(update={"status": "completed"}))
    assert cycles.request("request", key="k", body="b").id == record.id
    with pytest.raises(ReusedKeyError):
        cycles.request("request", key="k", body="other")
    assert cycles.request("request", key="k2", body="b").id > record.id


def test_a_damaged_record_is_said_and_not_guessed(tmp_path: Path) -> None:
    cycles = Cycles(tmp_path)
    record = cycles.request("request")
    (tmp_path / "cycles" / f"{record.id}.json").write_text("{}")
    with pytest.raises(TrainingAwayError, match=f"cycles/{record.id}.json .*damaged.*remove"):
        cycles.get(record.id)


@pytest.mark.parametrize("cycle_id", ["", "../trainer", "cycle-1", "cycle-20261124T143522397-x"])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, cycle_id: str) -> None:
    cycles = Cycles(tmp_path)
    cycles.cancel(cycle_id)
    assert cycles.get(cycle_id) is None
    assert list(tmp_path.rglob("*.cancel")) == []


def test_there_is_one_trainer(tmp_path: Path) -> None:
    cycles = Cycles(tmp_path)
    assert not cycles.is_attended()
    with cycles.attending() as first:
        assert first and Cycles(tmp_path).is_attended()
    assert not cycles.is_attended()
