"""A few of many files open: none is closed while it is used, none stays for ever."""

import gc
import os
import threading

import pytest

from merging.checkpoints.descriptors import Descriptors


class Files:
    """Files of a folder, and the descriptors of them that were opened and closed."""

    def __init__(self, folder):
        self.folder, self.opened = folder, []

    def open(self, name):
        (self.folder / name).touch()
        self.opened.append(os.open(self.folder / name, os.O_RDONLY))
        return self.opened[-1]

    def left(self):
        """Return the names of those that are open."""
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                place = os.readlink(f"/proc/self/fd/{number}")
            except OSError:  # the listing's own
                continue
            if os.path.dirname(place) == str(self.folder):
                found.append(os.path.basename(place))
        return sorted(found)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def use(open_files, name):
    with open_files.of(name):
        pass


def test_the_latest_used_stay_open_and_are_opened_once(files):
    few = Descriptors(2, files.open)
    for name in "abab":
        use(few, name)
    assert len(files.opened) == 2
    use(few, "c")
    assert few.keys() == ["b", "c"] == files.left()
    use(few, "b")
    use(few, "d")
    assert few.keys() == ["b", "d"] == files.left()


def test_only_files_that_nobody_uses_make_room(files):
    few = Descriptors(1, files.open)
    with few.of("a") as first, few.of("b"):
        use(few, "c")
        assert files.left() == ["a", "b"]  # more than it keeps, as both are used
        os.fstat(first)
    assert len(files.left()) == 1 == len(few.keys())


def test_closing_waits_for_the_last_user(files):
    few = Descriptors(2, files.open)
    with few.of("a") as first:
        with few.of("a") as same:
            assert same == first
            few.close("a")
        os.fstat(first)
        with few.of("a") as again:  # a new user has a descriptor of its own
            assert again != first
        few.close_all()
        assert few.keys() == []
        assert files.left() == ["a"]
    assert files.left() == []
    few.close("a")  # nothing to close


def test_closing_twice_closes_no_one_elses_file(files):
    few = Descriptors(2, files.open)
    use(few, "a")
    few.close("a")
    other = files.open("b")  # has the number that is free again
    few.close("a")
    few.close_all()
    os.fstat(other)
    os.close(other)


def test_who_needs_the_room_hears_of_a_file_that_did_not_leave_well(files):
    def fails(name, number):
        os.fstat(number)
        raise OSError(f"{name} was not stored")

    few = Descriptors(1, files.open, fails)
    use(few, "a")
    with pytest.raises(OSError, match="a was not stored"):
        use(few, "b")
    assert files.left() == few.keys() == ["b"]
    few.close("b")  # a file that is closed by its owner leaves without a word
    assert files.left() == []


def test_all_are_closed_though_one_can_not_be(files, monkeypatch):
    few = Descriptors(3, files.open)
    for name in "abc":
        use(few, name)
    second, close = files.opened[1], os.close

    def fails(number):
        close(number)
        if number == second:
            raise OSError("the disk failed")

    monkeypatch.setattr(os, "close", fails)
    with pytest.raises(OSError, match="the disk failed"):
        few.close_all()
    assert files.left() == few.keys() == []


def test_a_file_that_can_not_be_opened_is_not_remembered(files):
    few = Descriptors(2, files.open)
    with pytest.raises(FileNotFoundError):
        use(few, "no/such")
    assert few.keys() == []


def test_others_use_their_files_while_one_leaves(files):
    leaving, others = threading.Event(), threading.Event()

    def slow(name, number):
        leaving.set()
        assert others.wait(10)

    few = Descriptors(1, files.open, slow)
    use(few, "a")
    thread = threading.Thread(target=use, args=(few, "b"))
    thread.start()
    assert leaving.wait(10)
    with few.of("b"), few.of("a"):  # even the one that leaves, anew
        assert files.left() == ["a", "a", "b"]
        others.set()
        thread.join(10)
    assert not thread.is_alive()


def test_garbage_that_is_collected_while_one_is_opened_may_close_others(files):
    class Garbage:
        def __init__(self, name):
            self.name, self.itself = name, self

        def __del__(self):
            few.close(self.name)

    def open_collecting(name):
        number = files.open(name)
        gc.collect()
        return number

    def work():
        for name in "abcd":
            use(few, name)
            Garbage(name)

    few = Descriptors(4, open_collecting)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert few.keys() == files.left() == ["d"]
