"""Several jobs at a time leave the files that one after the other would."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from multiprocessing import active_children
from pathlib import Path

import pytest

from cogrpo_trainer.reproduce.execute import Budget, Laboratory
from cogrpo_trainer.reproduce.parallel import end_with_parent, prepare
from cogrpo_trainer.reproduce.plan import BEST_CONSTANT, Item, Measure

MEASURES = [Measure(schedule="cosine-power:1.0", steps=1), Measure(schedule="meissonic", steps=2)]
ITEM = Item("some", "Some", {"one": [MEASURES[0]], "other": [MEASURES[1]]}, {})


@pytest.mark.slow
def test_measures_are_those_of_one_process(tmp_path: Path) -> None:
    budget, said = Budget(prompts=7), list[str]()
    prepare(tmp_path / "two", budget, [ITEM], 2, said.append)
    assert sorted(line.split(": ")[1] for line in said) == sorted(
        f"measure {measure.key}" for measure in MEASURES
    )
    alone = Laboratory(tmp_path / "one", budget)
    for measure in MEASURES:
        expected = alone.scores(measure)
        saved = json.loads((tmp_path / "two" / "measures" / f"{measure.key}.json").read_text())
        assert saved["scores"].keys() == expected.keys()
        for name, values in expected.items():
            assert saved["scores"][name] == pytest.approx(values.tolist(), abs=1e-3)


def test_what_was_measured_is_not_made_again(tmp_path: Path) -> None:
    """Its run may be gone: nothing is trained for a measure that is there."""
    budget, said = Budget(prompts=7, model=str(tmp_path / "nowhere")), list[str]()
    laboratory = Laboratory(tmp_path, budget)
    known = Measure("co-grpo", 0, 1, "learned", 2)
    settings = laboratory.settings(known)
    saved = {"budget": asdict(budget), "settings": settings, "scores": {"checker": [0.0, 1.0]}}
    laboratory.measure_file(known).parent.mkdir()
    laboratory.measure_file(known).write_text(json.dumps(saved))
    prepare(tmp_path, budget, [Item("some", "Some", {"one": [known]}, {})], 1, said.append)
    assert not said
    assert laboratory.scores(known)["checker"].tolist() == [0.0, 1.0]
    assert Laboratory(tmp_path, Budget(prompts=14)).saved(known) is None
    laboratory.measure_file(known).write_text(json.dumps(saved | {"settings": "of another preset"}))
    assert laboratory.saved(known) is None


def test_what_a_job_raises_ends_all(tmp_path: Path) -> None:
    """The other job, a search of minutes, is not left running."""
    rows = {"fails": [Measure("nonesuch", 0, 1, "learned", 2)]}
    rows["long"] = [Measure(schedule=BEST_CONSTANT)]
    with pytest.raises(KeyError, match="nonesuch"):
        prepare(tmp_path, Budget(prompts=7), [Item("some", "Some", rows, {})], 2, lambda _: None)
    deadline = time.monotonic() + 30
    while active_children() and time.monotonic() < deadline:  # the pool's thread reaps them too
        time.sleep(0.05)
    assert not active_children()


def _stay(child: int) -> None:
    """Of a child: it says that it watches, and stays."""
    end_with_parent()
    os.write(child, b"%d\n" % os.getpid())
    time.sleep(60)


_PARENT = """
import multiprocessing, time
from tests.trainer.reproduce.test_parallel import _stay
if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=_stay, args=(1,)).start()
    time.sleep(60)
"""


def test_workers_end_with_who_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait(10)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")
