"""Buffers that batches are read into: reused, touched before, never overwritten while anyone refers to them.

Memory fresh from the kernel is faulted in page by page, at a tenth of the speed of memory that was touched
before, so a stream reads into the same few buffers over and over. Who still needs a buffer is not counted
here: every lease is a new view of it, tensors made of the view hold a reference to it, and when the last of
them is gone, whatever was cut from them and wherever it was kept, the buffer returns by itself.

Page-locked buffers are leased from PyTorch's own pool of them. It keeps the same promise, and one more: a
buffer freed while copies from it are under way, on whatever stream they were asked for, is handed out again
only when they have finished.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

# Free bytes kept for reuse by default: more than a stream holds at a time at the usual batch sizes.
KEEP_BYTES = 512 << 20
# Buffers begin at page edges, and their sizes are rounded up so that batches of about a size can share them.
PAGE = 4096
SIZES_PER_OCTAVE = 8
# A buffer of more than this many times what is needed is left for those who need it.
LARGEST_FIT = 2


class BufferPool:
    """Leases buffers. Threads may share it.

    Attributes:
        keep_bytes: free bytes kept for reuse; what comes back beyond them is given to the kernel.
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self.keep_bytes = keep_bytes
        # Buffers come back from finalizers, which may run at any point of any thread, within this class too:
        # no lock could be taken there, but single operations of a dict are atomic.
        self._free: dict[int, np.ndarray] = {}

    def lease(self, size: int, pin: bool = False) -> torch.Tensor:
        """A buffer that nothing else refers to, its content undefined.

        Args:
            size: in bytes.
            pin: page-locked, so that copies to a GPU need not wait; needs CUDA.

        Returns:
            [size] uint8.
        """
        if pin:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        buffer = self._take(size)
        # The tensor's storage refers to this view, not to the buffer.
        view = buffer[:size]
        weakref.finalize(view, self._return, buffer).atexit = False
        return torch.from_numpy(view)

    @property
    def free_bytes(self) -> int:
        """Bytes that wait for reuse."""
        return sum(buffer.nbytes for buffer in list(self._free.values()))

    def _take(self, size: int) -> np.ndarray:
        """The smallest free buffer that fits well, or a new one."""
        fitting = [b for b in list(self._free.values()) if size <= b.nbytes <= LARGEST_FIT * max(size, PAGE)]
        for buffer in sorted(fitting, key=lambda b: b.nbytes):
            # Another thread may have been faster.
            if self._free.pop(id(buffer), None) is not None:
                return buffer
        return allocate(rounded(size))

    def _return(self, buffer: np.ndarray) -> None:
        self._free[id(buffer)] = buffer
        while self._free and self.free_bytes > self.keep_bytes:
            for oldest in list(self._free)[:1]:
                self._free.pop(oldest, None)


def rounded(size: int) -> int:
    """The size of a buffer for `size` bytes: at most an eighth more, and whole pages."""
    step = max(PAGE, (1 << max(0, size.bit_length() - 1)) // SIZES_PER_OCTAVE)
    return max(1, -(-size // step)) * step


def allocate(size: int) -> np.ndarray:
    """Memory of `size` bytes from a page's edge on, every page of it touched, [size] uint8."""
    raw = np.empty(size + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    buffer = raw[start : start + size]
    buffer[::PAGE] = 0
    return buffer
