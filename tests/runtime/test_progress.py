import errno
import io
import json
import os
import threading

import pytest

from merging.runtime.progress import EventLog, Progress, Timer
from merging.runtime.text import duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def progress(clock, total=10.0, **settings):
    stream = io.StringIO()
    return Progress(total, "sweep", clock=clock, stream=stream, **settings), stream


def test_time_left_is_the_remaining_weight_at_the_rate_so_far(clock):
    run, _ = progress(clock, total=10.0)
    assert run.time_left is None
    clock.now += 6
    run.advance(3)
    assert run.time_left == pytest.approx(14)
    clock.now += 4  # nothing finished: it counts down
    assert run.time_left == pytest.approx(10)
    run.advance(2)
    assert run.time_left == pytest.approx(10)
    run.advance(5)
    assert run.time_left == 0


def test_work_of_an_earlier_run_does_not_flatter_the_rate(clock):
    run, _ = progress(clock, total=100.0)
    run.skip(90)
    assert run.time_left is None
    clock.now += 10
    run.advance(5)
    assert run.time_left == pytest.approx(10)
    assert "95%" in str(run)


def test_a_run_that_goes_on_near_its_end_knows_the_time_left(clock):
    run, _ = progress(clock, total=1000.0)
    run.skip(950)
    clock.now += 2
    run.advance(1)
    assert run.time_left == pytest.approx(49 * 2)


def test_plain_lines_are_rare_and_the_last_state_is_always_shown(clock):
    run, stream = progress(clock, total=100.0, interval=5.0)
    with run:
        for step in range(100):
            clock.now += 0.1
            run.advance(1, note=f"step {step}")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1] == "sweep 100%, 10s so far, 0s left, step 99"


def test_the_last_line_tells_where_a_failed_run_stood(clock):
    run, stream = progress(clock, total=4.0)
    with pytest.raises(RuntimeError), run:
        run.note("expert nli")
        run.advance(1)
        raise RuntimeError
    assert stream.getvalue().splitlines()[-1].startswith("sweep  25%")
    assert "expert nli" in stream.getvalue()


def test_a_message_stays_among_the_plain_lines(clock):
    run, stream = progress(clock)
    run.message("warning: [bold] checkpoint is cut")
    assert "warning: [bold] checkpoint is cut\n" in stream.getvalue()


def test_on_a_terminal_one_live_line_is_redrawn(clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(2, "sweep", stream=stream, clock=clock) as run:
        clock.now += 3
        run.advance(1, note="merged [ties]")
        run.message("a [warning]")
    text = stream.getvalue()
    assert "sweep  50%, 3s so far, 3s left, merged [ties]" in text
    assert "\x1b[2Ka [warning]\n" in text  # in place of the line, drawn again below
    assert "50%" in text.partition("a [warning]")[2]


def test_every_advance_is_an_event(tmp_path, clock):
    log = EventLog(tmp_path / "deep" / "events.jsonl")
    run, _ = progress(clock, log=log)
    clock.now += 2
    run.advance(4, note="expert")
    log.write("end", rows=3)
    first, last = map(json.loads, (tmp_path / "deep/events.jsonl").open())
    assert first["event"] == "advance" and first["note"] == "expert"
    assert (first["done"], first["total"], first["elapsed"]) == (4, 10, 2)
    assert last["event"] == "end" and last["rows"] == 3
    assert first["time"] <= last["time"]


def test_a_half_written_event_damages_no_later_one(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "ki')
    log = EventLog(path)
    log.write("one")
    log.write("two")
    lines = path.read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines[1:]] == ["one", "two"]


def test_events_of_concurrent_writers_never_mix(tmp_path):
    path = tmp_path / "events.jsonl"

    def write(writer):
        log = EventLog(path)
        for _ in range(50):
            log.write("step", writer=writer, filler="x" * 200)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writers = [json.loads(line)["writer"] for line in path.open()]
    assert sorted(writers) == sorted([0, 1, 2, 3] * 50)


def test_a_file_system_without_locks_takes_events_all_the_same(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("merging.runtime.progress.fcntl.flock", no_locks)
    log = EventLog(tmp_path / "events.jsonl")
    log.write("one")
    log.write("two")
    events = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert [event["event"] for event in events] == ["one", "two"]


def test_no_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EventLog(None).write("step")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (250, "4m10s"), (3599.7, "1h00m"), (7500, "2h05m")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_the_timer_measures_its_block_even_when_it_fails():
    timer = Timer()
    with pytest.raises(RuntimeError), timer:
        raise RuntimeError
    assert 0 < timer.seconds < 5
