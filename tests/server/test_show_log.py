"""The lines of `cogrpo trajectories`."""

from cogrpo_server.show_log import Line, _text

LINE = Line("gen_1-0", "req_1", 5, "a red circle", 7, "64x64", 16, "meissonic", "shapes", "base")


def test_a_line_says_what_was_made_and_whether_it_replays() -> None:
    text = "gen_1-0  identical  seed 7  64x64  16 steps  meissonic  base  a red circle"
    assert _text(Line(**{**LINE.__dict__, "identical": True})) == text
    assert "DIFFERENT" in _text(Line(**{**LINE.__dict__, "identical": False}))
    assert "  seed 7  " in _text(LINE) and "identical" not in _text(LINE)


def test_an_entry_that_cannot_be_read_says_why() -> None:
    assert _text(Line("gen_1-0", "req_1", error="checksum")) == "gen_1-0  FAILED: checksum"


def test_a_prompt_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in _text(Line(**{**LINE.__dict__, "prompt": "\x1b[2Jboo"}))
