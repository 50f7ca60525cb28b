"""The histogram that one pass takes, to answer many count queries.

A query asks how many elements a few trial rules would keep, and the next query
depends on the answer. A pass over checkpoints is dear, so it counts more than was
asked: the trials lie close together around the threshold, and a pass takes the whole
histogram of the magnitudes between them, key by key. The queries that follow fall
inside it and are answered from memory; one that does not takes another pass. Where
elements on a threshold are told apart by their index, the places of those between the
trials are kept in the same way.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from merging.methods import CountQuery

# Bins of all histograms together, 8 bytes each.
BINS = 2**23
# Keys on either side of the trials; 2**23 are an octave.
MARGIN = 2**14
# Places of elements on a threshold that are kept for one expert, 8 bytes each.
PLACES = 2**21
# Elements that NumPy works on at a time, to stay in the cache.
CHUNK = 2**17


class _Window(NamedTuple):
    """Keys [low, low + len(counts)): how often each occurs, and how many lie above.

    When all is counted, `counts` are made to say how many lie on a key or above it.
    """

    low: int
    counts: np.ndarray
    above: np.ndarray

    def holds(self, trials: np.ndarray) -> np.ndarray:
        """Return which trials can be answered from it; its end is one of them."""
        return (trials >= self.low) & (trials <= self.low + len(self.counts))

    def add_up(self) -> None:
        """Make the counts sums, in place: they are most of what a search holds."""
        falling = self.counts[::-1]
        np.cumsum(falling, out=falling)
        falling += self.above[0]

    def summed(self, trials: np.ndarray) -> np.ndarray:
        """Return how many lie on each trial or above it, after `add_up`."""
        place = trials - self.low
        inside = self.counts[np.minimum(place, len(self.counts) - 1)]
        return np.where(place < len(self.counts), inside, self.above[0])


class Histogram:
    """What one pass finds out for one expert, to answer one query and more.

    Args:
      query: magnitudes at trial thresholds, one row of trials for all leaves
        together or for each leaf; with cutoffs, the elements on the thresholds.
      units: rows of this and all other queries of the pass, which share `BINS`.
      key_dtype: of the magnitude keys.
    """

    def __init__(self, query: CountQuery, units: int, key_dtype: np.dtype):
        self.query = query
        self._rows = len(query.threshold)
        self._type = np.dtype(key_dtype).type
        self._lock = threading.Lock()
        self._windows: dict[int, _Window] = {}
        self._counts = np.zeros(query.threshold.shape, np.int64)
        # Of each row, the places of elements on its threshold, between its trials.
        self._places: dict[int, list[np.ndarray]] = {}
        self._held = np.zeros(1, np.int64)
        for row, trials in enumerate(query.threshold):
            if (trials < 0).any():
                continue
            if query.cutoff is None:
                self._windows[row] = _window(trials, BINS // units)
            else:
                self._places[row] = []

    def add(self, leaf: int, start: int, keys: np.ndarray) -> None:
        """Count a piece: the keys of elements [start, start + len) of a leaf."""
        row = leaf if self._rows > 1 else 0
        if self.query.cutoff is not None:
            if row in self._places:
                for at in range(0, len(keys), CHUNK):
                    self._add_places(row, start + at, keys[at : at + CHUNK])
            return
        window = self._windows.get(row)
        outside = [
            trial
            for trial, threshold in enumerate(self.query.threshold[row])
            if threshold >= 0 and (window is None or not window.holds(threshold))
        ]
        for at in range(0, len(keys), CHUNK):
            chunk = keys[at : at + CHUNK]
            trials = self.query.threshold[row, outside].astype(self._type)
            counts = np.array([np.count_nonzero(chunk >= t) for t in trials], np.int64)
            inside, above = (None, 0) if window is None else self._inside(window, chunk)
            with self._lock:  # several blocks are counted at a time
                self._counts[row, outside] += counts
                if window is not None:
                    np.add.at(window.counts, inside, 1)
                    window.above[0] += above

    def window(self) -> tuple[int, int] | None:
        """Return (low, bins) if all that is asked lies in one window of keys."""
        if self._rows > 1 or 0 not in self._windows:
            return None
        window = self._windows[0]
        if not window.holds(self.query.threshold[0]).all():
            return None
        return window.low, len(window.counts)

    def add_windowed(self, inside: np.ndarray | int, above: int) -> None:
        """Count the keys in the one window, and how many lie above it.

        Args:
          inside: the keys; of a window of one key, their number.
          above: a number.
        """
        window = self._windows[0]
        with self._lock:
            if isinstance(inside, int):
                window.counts[0] += inside
            else:
                np.add.at(window.counts, inside - self._type(window.low), 1)
            window.above[0] += above

    def totals(self) -> list[np.ndarray]:
        """Return the arrays that processes add up, in place; all of one dtype."""
        windows = [a for w in self._windows.values() for a in (w.counts, w.above)]
        return [self._counts, self._held, *windows]

    def finish(self) -> None:
        """Make ready to answer, when everything is counted and added up."""
        if self._held[0] > PLACES:
            self._places.clear()
        for row, parts in self._places.items():
            merged = np.concatenate(parts) if parts else np.zeros(0, np.int64)
            self._places[row] = [np.sort(merged)]
        for window in self._windows.values():
            window.add_up()

    def answers(self, query: CountQuery) -> bool:
        """Return whether everything that is asked was counted."""
        if query is self.query:
            return True
        if len(query.threshold) != self._rows:
            return False
        asked = [r for r, trials in enumerate(query.threshold) if trials[0] >= 0]
        if query.cutoff is None:
            return all(
                row in self._windows
                and self._windows[row].holds(query.threshold[row]).all()
                for row in asked
            )
        return all(
            row in self._places
            and (query.threshold[row] == self.query.threshold[row, 0]).all()
            and query.cutoff[row].min() >= self.query.cutoff[row].min()
            and query.cutoff[row].max() <= self.query.cutoff[row].max()
            for row in asked
        )

    def answer(
        self, query: CountQuery, total: Callable[[list[np.ndarray]], None]
    ) -> np.ndarray:
        """Return the counts: int64 of the thresholds' shape.

        Args:
          query: one that is answered.
          total: adds up arrays over the processes, in place.
        """
        if query is self.query and query.cutoff is not None:
            return self._counts.copy()
        if query.cutoff is not None:
            return self._from_places(query, total)
        known = query is self.query
        counts = self._counts.copy() if known else np.zeros_like(self._counts)
        for row, window in self._windows.items():
            trials = query.threshold[row]
            held = window.holds(trials)
            counts[row, held] = window.summed(trials[held])
        return counts

    def _from_places(self, query: CountQuery, total) -> np.ndarray:
        """Answer how many are kept before cutoffs that lie between the trials."""
        counts = np.zeros(query.threshold.shape, np.int64)
        for row in np.flatnonzero(query.threshold[:, 0] >= 0):
            counts[row] = np.searchsorted(self._places[row][0], query.cutoff[row])
        total([counts])
        first = self.query.cutoff.argmin(axis=1)
        return counts + self._counts[np.arange(self._rows), first][:, None]

    def _add_places(self, row: int, start: int, keys: np.ndarray) -> None:
        threshold = self._type(self.query.threshold[row, 0])
        cutoffs = self.query.cutoff[row]
        tied = np.flatnonzero(keys == threshold) + start
        counts = np.count_nonzero(keys > threshold) + np.searchsorted(tied, cutoffs)
        low, high = np.searchsorted(tied, [cutoffs.min(), cutoffs.max()])
        with self._lock:
            self._counts[row] += counts
            self._held += high - low
            if self._held[0] <= PLACES:
                self._places[row].append(tied[low:high].copy())  # not a view of all

    def _inside(self, window: _Window, keys: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the keys in the window, from its start, and how many lie above."""
        # What lies below the window wraps around to the far end.
        places = np.subtract(keys, self._type(window.low))
        inside = places[places < self._type(len(window.counts))]
        last = self._type(window.low + len(window.counts) - 1)
        return inside, np.count_nonzero(keys > last)


def _window(trials: np.ndarray, most: int) -> _Window:
    """Return a window around the middle trial, wider than the trials if it may be.

    Narrow dtypes leave few magnitudes: then the trials are one heap of equals and the
    key after it, and counting the heap is enough.
    """
    low, *_, high = ordered = sorted(int(trial) for trial in trials)
    middle = ordered[len(ordered) // 2]
    margin = max(high - low, MARGIN) if high - low > 1 else 0
    low = max(low - margin, middle - most // 2, 1)
    bins = max(min(high + margin, middle + most // 2) - low, 1)
    return _Window(low, np.zeros(bins, np.int64), np.zeros(1, np.int64))
