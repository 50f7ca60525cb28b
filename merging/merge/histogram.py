"""The histogram that one pass takes, to answer many count queries.

A query asks how many elements a few trial rules would keep, and the next query
depends on the answer. A pass over checkpoints is dear, so it counts more than was
asked: the trials lie close together around the threshold, and a pass takes the whole
histogram of the magnitudes between them, key by key. The queries that follow fall
inside it and are answered from memory; one that does not takes another pass. Where
elements on a threshold are told apart by their index, a pass counts those of each
piece of a leaf, and the piece in which the last one lies that is kept is read again.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merging.methods import CountQuery

# Bins of all histograms together, 8 bytes each.
BINS = 2**23
# Keys on either side of the trials; 2**23 are an octave.
MARGIN = 2**14
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


class _Ties(NamedTuple):
    """Elements on a key, in each piece of a leaf, and how many lie above.

    Edges are where pieces begin, and the leaf's size.
    """

    key: int
    edges: np.ndarray
    counts: np.ndarray
    above: np.ndarray


class Histogram:
    """What one pass finds out for one expert, to answer one query and more.

    Args:
      query: magnitudes at trial thresholds, one row of trials for all leaves
        together or for each leaf; with cutoffs, at which pieces end, the elements on
        the thresholds.
      units: rows of this and all other queries of the pass, which share `BINS`.
      key_dtype: of the magnitude keys.
      edges: of each leaf, the elements at which its pieces begin, and its size.
    """

    def __init__(
        self,
        query: CountQuery,
        units: int,
        key_dtype: np.dtype,
        edges: Sequence[np.ndarray],
    ):
        self.query = query
        self._rows = len(query.threshold)
        self._type = np.dtype(key_dtype).type
        self._lock = threading.Lock()
        self._windows: dict[int, _Window] = {}
        self._counts = np.zeros(query.threshold.shape, np.int64)
        self._ties: dict[int, _Ties] = {}
        for row, trials in enumerate(query.threshold):
            if (trials < 0).any():
                continue
            key: int | None = int(trials[0])
            if query.cutoff is None:
                window = self._windows[row] = _window(trials, BINS // units)
                key = window.low if len(window.counts) == 1 else None
            if key is not None and self._rows == len(edges):
                counts = np.zeros(len(edges[row]) - 1, np.int64)
                self._ties[row] = _Ties(key, edges[row], counts, np.zeros(1, np.int64))

    def add(self, leaf: int, start: int, keys: np.ndarray) -> None:
        """Count a piece: the keys of elements [start, start + len) of a leaf."""
        row = leaf if self._rows > 1 else 0
        window = self._windows.get(row)
        outside: list[int] = []
        if self.query.cutoff is None:
            outside = [
                trial
                for trial, threshold in enumerate(self.query.threshold[row])
                if threshold >= 0 and (window is None or not window.holds(threshold))
            ]
        trials = self.query.threshold[row, outside].astype(self._type)
        for at in range(0, len(keys), CHUNK):
            chunk = keys[at : at + CHUNK]
            counts = np.array([np.count_nonzero(chunk >= t) for t in trials], np.int64)
            inside, above = (None, 0) if window is None else self._inside(window, chunk)
            with self._lock:  # several blocks are counted at a time
                self._counts[row, outside] += counts
                if window is not None:
                    np.add.at(window.counts, inside, 1)
                    window.above[0] += above
            if row in self._ties:
                key = self._type(self._ties[row].key)
                tied = np.count_nonzero(chunk == key), np.count_nonzero(chunk > key)
                self._add_ties(row, start, *tied)

    def window(self, leaves: Sequence[int]) -> tuple[int, int] | None:
        """Return (low, bins) if all that is asked of leaves lies in one window of keys.

        Args:
          leaves: that of each piece of a block.
        """
        rows = sorted(set(leaves)) if self._rows > 1 else [0]
        if len(rows) > 1:
            return None
        if self.query.cutoff is not None:
            tied = self._ties.get(rows[0]) if len(leaves) == 1 else None
            return None if tied is None else (tied.key, 1)
        window = self._windows.get(rows[0])
        if window is None or not window.holds(self.query.threshold[rows[0]]).all():
            return None
        return window.low, len(window.counts)

    def add_windowed(
        self, leaf: int, start: int, inside: np.ndarray | int, above: int
    ) -> None:
        """Count the keys of a block in the one window, and how many lie above it.

        Args:
          leaf: of the block's first piece.
          start: where that begins in the leaf.
          inside: the keys; of a window of one key, their number.
          above: a number.
        """
        row = leaf if self._rows > 1 else 0
        if window := self._windows.get(row):
            with self._lock:
                if isinstance(inside, int):
                    window.counts[0] += inside
                else:
                    np.add.at(window.counts, inside - self._type(window.low), 1)
                window.above[0] += above
        if row in self._ties and isinstance(inside, int):
            self._add_ties(row, start, inside, above)

    def totals(self) -> list[np.ndarray]:
        """Return the arrays that processes add up, in place; all of one dtype."""
        windows = [a for w in self._windows.values() for a in (w.counts, w.above)]
        ties = [a for t in self._ties.values() for a in (t.counts, t.above)]
        return [self._counts, *windows, *ties]

    def finish(self) -> None:
        """Make ready to answer, when everything is counted and added up."""
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
            row in self._ties
            and (query.threshold[row] == self._ties[row].key).all()
            and np.isin(query.cutoff[row], self._ties[row].edges).all()
            for row in asked
        )

    def answer(self, query: CountQuery) -> np.ndarray:
        """Return the counts, int64 of the thresholds' shape, of a query it answers."""
        counts = np.zeros(query.threshold.shape, np.int64)
        if query.cutoff is not None:
            for row in np.flatnonzero(query.threshold[:, 0] >= 0).tolist():
                ties = self._ties[row]
                before = np.cumsum([0, *ties.counts])
                places = np.searchsorted(ties.edges, query.cutoff[row])
                counts[row] = ties.above[0] + before[places]
            return counts
        if query is self.query:
            counts = self._counts.copy()
        for row, window in self._windows.items():
            trials = query.threshold[row]
            held = window.holds(trials)
            counts[row, held] = window.summed(trials[held])
        return counts

    def piece(self, leaf: int, place: int) -> tuple[int, int]:
        """Return where the piece begins in which a leaf's place-th tie lies.

        And its place in there; both places count from 1.
        """
        ties = self._ties[leaf]
        before = np.cumsum([0, *ties.counts])
        piece = int(np.searchsorted(before, place)) - 1
        return int(ties.edges[piece]), place - int(before[piece])

    def _add_ties(self, row: int, start: int, inside: int, above: int) -> None:
        ties = self._ties[row]
        piece = int(np.searchsorted(ties.edges, start, side="right")) - 1
        with self._lock:
            ties.counts[piece] += inside
            ties.above[0] += above

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
