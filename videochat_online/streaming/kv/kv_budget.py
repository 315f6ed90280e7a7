"""How much memory the KV caches of a process may take together, and whose cache goes when it is short."""

from __future__ import annotations

import logging
import threading
from collections.abc import MutableMapping
from weakref import WeakKeyDictionary

import psutil
import torch

from videochat_online.errors import InputError
from videochat_online.streaming.kv.cache import CachedSequence

logger = logging.getLogger(__name__)

SHARE_OF_MEMORY = 0.25


class KvBudget:
    """Keeps cached sequences for their holders as long as they fit; the least recently used go first.

    What a running answer needs is never refused, and counts: others are released for it. So the sum stays within
    the budget unless the answers that are running exceed it by themselves. A holder that is garbage collected
    leaves nothing behind. All methods may be called from any thread.

    Args:
        max_bytes: bytes of all keys and values together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InputError(f"KV budget: expected at least 0 bytes, got {max_bytes}")
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        # Dictionaries keep the order of insertion: the first is the one that was not used for longest.
        self._kept: MutableMapping[object, CachedSequence] = WeakKeyDictionary()
        self._in_use: MutableMapping[object, int] = WeakKeyDictionary()

    @property
    def num_bytes(self) -> int:
        """Bytes kept and in use."""
        with self._lock:
            return sum(self._in_use.values()) + sum(kept.cache.num_bytes for kept in self._kept.values())

    def peek(self, holder: object) -> CachedSequence | None:
        """What is kept for a holder, and stays so."""
        with self._lock:
            return self._kept.get(holder)

    def take(self, holder: object, num_bytes: int) -> CachedSequence | None:
        """Hand out what is kept for a holder, if anything, and make room for the bytes it is going to have."""
        with self._lock:
            sequence = self._kept.pop(holder, None)
            self._in_use[holder] = num_bytes
            self._make_room(0)
            return sequence

    def give_back(self, holder: object, sequence: CachedSequence | None) -> None:
        """End a use; the sequence, unless None, is kept if it fits."""
        with self._lock:
            self._in_use.pop(holder, None)
            if sequence is None:
                return
            num_bytes = sequence.cache.num_bytes
            if num_bytes + sum(self._in_use.values()) > self.max_bytes:
                logger.debug("a KV cache of %d bytes is not kept: the budget is %d", num_bytes, self.max_bytes)
                return
            self._make_room(num_bytes)
            self._kept[holder] = sequence

    def release(self, holder: object) -> None:
        """Forget what is kept for a holder."""
        with self._lock:
            self._kept.pop(holder, None)

    def _make_room(self, num_bytes: int) -> None:
        while self.num_bytes + num_bytes > self.max_bytes:
            oldest = next(iter(self._kept), None)
            if oldest is None:  # a holder may be collected at any moment, by another thread, too
                return
            del self._kept[oldest]


_BUDGETS: dict[torch.device, KvBudget] = {}
_BUDGETS_LOCK = threading.Lock()


def default_budget(device: torch.device) -> KvBudget:
    """The process's budget for a device, the same at every call: a quarter of the memory of GPU or machine."""
    with _BUDGETS_LOCK:
        if device not in _BUDGETS:
            is_cuda = device.type == "cuda"
            properties = torch.cuda.get_device_properties(device) if is_cuda else None
            total = psutil.virtual_memory().total if properties is None else properties.total_memory
            _BUDGETS[device] = KvBudget(int(SHARE_OF_MEMORY * total))
        return _BUDGETS[device]
