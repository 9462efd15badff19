"""The trajectory record: round trip, V^(t), and bytes that want to do harm."""

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogrpo_core.trajectory import MAX_TEXT, Trajectory, TrajectoryError


def make(
    content: int = 0, rows: int = 4, columns: int = 5, steps: int = 6, **changes
) -> Trajectory:
    """A valid trajectory with random content."""
    random, count = np.random.default_rng(content), rows * columns
    values: dict = {
        "prompt": "a red circle left of a blue square",
        "negative_prompt": "",
        "seed": 7,
        "height": rows * 16,
        "width": columns * 16,
        "grid_height": rows,
        "grid_width": columns,
        "schedule": "meissonic",
        "model": "shapes",
        "fingerprint": "ab" * 32,
        "policy_version": "base",
        "sampler_version": 1,
        "created_at_ms": 1_700_000_000_000,
        "tokens": random.integers(0, 1024, count),
        "fill_step": random.integers(0, steps, count),
        "token_logprob": -random.exponential(size=count).astype(np.float32),
        "actions": random.uniform(0.01, 1, (steps, 4)).astype(np.float32),
        "action_logprob": random.normal(size=steps).astype(np.float32),
    }
    return Trajectory(**(values | changes))


def parts(trajectory: Trajectory) -> tuple[dict, bytes]:
    """The header and the arrays of the record."""
    data = trajectory.to_bytes()
    (size,) = struct.unpack_from("<I", data, 6)
    return json.loads(data[10 : 10 + size]), data[10 + size : -4]


def assemble(header: bytes, arrays: bytes, version: int = 1, size: int | None = None) -> bytes:
    """A record with a right checksum, whatever it says."""
    size = len(header) if size is None else size
    body = struct.pack("<4sHI", b"CGRT", version, size) + header + arrays
    return body + struct.pack("<I", zlib.crc32(body))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    steps=st.integers(1, 256),
    prompt=st.text(max_size=100),
    learned=st.booleans(),
)
def test_round_trip(seed, rows, columns, steps, prompt, learned):
    raw = np.random.default_rng(seed).normal(size=(steps, 4)).astype(np.float32)
    trajectory = make(
        seed, rows, columns, steps, prompt=prompt, raw_actions=raw if learned else None
    )
    data = trajectory.to_bytes()
    again = Trajectory.from_bytes(data)
    assert again.to_bytes() == data
    assert again.prompt == prompt
    for name in ("tokens", "fill_step", "token_logprob", "actions", "action_logprob"):
        assert np.array_equal(getattr(again, name), getattr(trajectory, name))
    assert (again.raw_actions is None) == (not learned)
    assert again.raw_actions is None or np.array_equal(again.raw_actions, raw)


def test_the_record_is_small():
    assert len(make(rows=16, columns=16, steps=16).to_bytes()) < 3 * 1024
    assert len(make(rows=64, columns=64, steps=48).to_bytes()) < 31 * 1024


def test_the_longest_texts_fit():
    text = "\x00" * MAX_TEXT  # six bytes each in JSON
    trajectory = make(prompt=text, negative_prompt="\U0001f3a8" * MAX_TEXT, model="\x01" * 200)
    assert Trajectory.from_bytes(trajectory.to_bytes()).prompt == text


def test_tokens_at_every_step():
    trajectory, mask = make(), 1024
    assert (trajectory.tokens_at(0, mask) == mask).all()
    assert np.array_equal(trajectory.tokens_at(6, mask), trajectory.tokens)
    for t in range(6):
        before, after = trajectory.tokens_at(t, mask), trajectory.tokens_at(t + 1, mask)
        changed = before != after
        assert np.array_equal(changed, trajectory.fill_step == t)
        assert (before[changed] == mask).all()
    for t in (-1, 7):
        with pytest.raises(TrajectoryError, match="outside"):
            trajectory.tokens_at(t, mask)


def test_arrays_cannot_be_changed():
    trajectory = make()
    with pytest.raises(ValueError, match="read-only"):
        trajectory.tokens[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"prompt": "x" * (MAX_TEXT + 1)}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "\ud800"}, "prompt|Unicode"),
        ({"model": "m" * 201}, "model"),
        ({"grid_height": 5}, "tokens"),
        ({"grid_height": 16384, "grid_width": 16384}, "at most 16384 tokens"),
        ({"tokens": np.full(20, 2**16)}, "tokens .* out of range"),
        ({"tokens": np.zeros(20, np.float32)}, "tokens .* type"),
        ({"fill_step": np.full(20, 6)}, "fill_step .* out of range"),
        ({"fill_step": np.full(20, -1)}, "fill_step .* out of range"),
        ({"token_logprob": np.full(20, np.nan, np.float32)}, "token_logprob"),
        ({"token_logprob": np.full(20, 0.1, np.float32)}, "token_logprob"),
        ({"actions": np.full((6, 4), np.inf, np.float32)}, "actions"),
        ({"actions": np.full((6, 4), 2, np.float32)}, "actions .* out of range"),
        ({"actions": np.zeros((0, 4), np.float32)}, "1 to 256 steps"),
        ({"actions": np.full((257, 4), 0.5, np.float32)}, "1 to 256 steps"),
        ({"raw_actions": np.full((6, 4), np.nan, np.float32)}, "raw_actions"),
        ({"action_logprob": np.zeros(5, np.float32)}, "action_logprob .* shape"),
    ],
)
def test_values_that_cannot_be_are_refused(change, message):
    with pytest.raises(TrajectoryError, match=message):
        make(**change)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_are_refused(data):
    for hostile in (data, b"CGRT" + data, b"CGRT\x01\x00" + data):
        with pytest.raises(TrajectoryError):
            Trajectory.from_bytes(hostile)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.integers(0, 10**6))
def test_damaged_records_are_refused(position, bit, cut):
    data = make().to_bytes()
    flipped = bytearray(data)
    flipped[position % len(data)] ^= 1 << bit
    for hostile in (bytes(flipped), data[: cut % len(data)], data + b"\x00", data + data):
        with pytest.raises(TrajectoryError):
            Trajectory.from_bytes(hostile)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), arrays=st.binary(max_size=600) | st.none())
def test_headers_that_lie_are_refused(data, arrays):
    """With a right checksum, so that the values themselves have to be checked."""
    header, original = parts(make())
    field = data.draw(st.sampled_from([*header, "another"]))
    value = data.draw(json_values | st.integers(-(2**70), 2**70))
    hostile = assemble(
        json.dumps(header | {field: value}).encode(), original if arrays is None else arrays
    )
    try:
        trajectory = Trajectory.from_bytes(hostile)
    except TrajectoryError:
        return
    assert parts(trajectory)[0] == header | {field: value}, "what is accepted is what it said"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[" * 32_000,
        b'{"a":' * 6_000,
        b"1" * 32_000,
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b"{}" + b" " * 40_000,
    ],
)
def test_headers_that_are_no_headers_are_refused(header):
    with pytest.raises(TrajectoryError):
        Trajectory.from_bytes(assemble(header, b""))


def test_huge_declared_lengths_allocate_nothing():
    header, arrays = parts(make())
    huge = header | {"grid_height": 128, "grid_width": 128, "num_steps": 256, "learned": True}
    hostile = [
        assemble(json.dumps(huge).encode(), arrays),
        assemble(json.dumps(header | {"num_steps": 2**31}).encode(), arrays),
        assemble(json.dumps(header | {"grid_width": 2**40}).encode(), arrays),
        assemble(json.dumps(header).encode(), arrays, size=2**32 - 1),
        assemble(json.dumps(header).encode(), arrays, version=2),
    ]
    tracemalloc.start()
    for data in hostile:
        with pytest.raises(TrajectoryError):
            Trajectory.from_bytes(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("data", [None, "CGRT", 7, [1, 2], bytearray(b"CGRT"), memoryview(b"x")])
def test_only_bytes_are_read(data):
    with pytest.raises(TrajectoryError, match="bytes"):
        Trajectory.from_bytes(data)
