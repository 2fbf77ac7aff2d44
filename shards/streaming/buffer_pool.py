"""A pool of buffers that batches are read into; a buffer is reused only when nothing refers to it any longer.

Why: the kernel maps new memory page by page on first access, which is ten times slower than writing to memory
that was used before. So a stream reads into the same few buffers again and again.

How: every lease is a new view of a buffer, and tensors made from the view hold a reference to it. When the
last tensor is gone, including views that a user cut and kept, a finalizer of the view returns the buffer.
No code counts references or frees buffers.

Page-locked buffers come from PyTorch's own pool. In addition it waits for asynchronous copies: a buffer that
is freed while copies from it are under way, on any CUDA stream, is reused only after they have finished.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

# Free bytes kept for reuse by default; at the usual batch sizes a stream needs less.
KEEP_BYTES = 512 << 20
# Buffers are aligned to pages. Their sizes are rounded up, so that batches of similar size reuse them.
PAGE = 4096
SIZES_PER_OCTAVE = 8
# A free buffer is not used for a request of less than 1 / LARGEST_FIT of its size: a larger one may need it.
LARGEST_FIT = 2


class BufferPool:
    """Leases buffers. Safe to use from several threads.

    Attributes:
        keep_bytes: free bytes kept for reuse; buffers returned beyond that are freed.
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self.keep_bytes = keep_bytes
        # Finalizers return buffers, and may run at any point of any thread, also inside this class. A lock
        # could deadlock there, so there is none: single operations of a dict are atomic.
        self._free: dict[int, np.ndarray] = {}  # by id

    def lease(self, size: int, pin: bool = False) -> torch.Tensor:
        """A buffer that nothing else refers to; its content is undefined.

        Args:
            size: in bytes.
            pin: page-locked, so that copies to a GPU are asynchronous; needs CUDA.

        Returns:
            [size] uint8.
        """
        if pin:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        buffer = self._take(size)
        # The tensor's storage refers to this view and not to the buffer. So the view's finalizer runs when
        # the last tensor is gone.
        view = buffer[:size]
        weakref.finalize(view, self._return, buffer).atexit = False
        return torch.from_numpy(view)

    @property
    def free_bytes(self) -> int:
        """Bytes of free buffers."""
        return sum(buffer.nbytes for buffer in list(self._free.values()))

    def _take(self, size: int) -> np.ndarray:
        """The smallest free buffer that fits well, or a new one."""
        fitting = [b for b in list(self._free.values()) if size <= b.nbytes <= LARGEST_FIT * max(size, PAGE)]
        for buffer in sorted(fitting, key=lambda b: b.nbytes):
            # Another thread may have taken it since.
            if self._free.pop(id(buffer), None) is not None:
                return buffer
        return allocate(round_up(size))

    def _return(self, buffer: np.ndarray) -> None:
        """Keep the buffer for reuse; free the oldest ones beyond `keep_bytes`."""
        self._free[id(buffer)] = buffer
        while self._free and self.free_bytes > self.keep_bytes:
            for oldest in list(self._free)[:1]:
                self._free.pop(oldest, None)


def round_up(size: int) -> int:
    """The size of a buffer for `size` bytes: at most an eighth more, in whole pages."""
    step = max(PAGE, (1 << max(0, size.bit_length() - 1)) // SIZES_PER_OCTAVE)
    return max(1, -(-size // step)) * step


def allocate(size: int) -> np.ndarray:
    """Page-aligned memory of `size` bytes, [size] uint8; every page is written once, so that it is mapped."""
    raw = np.empty(size + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    buffer = raw[start : start + size]
    buffer[::PAGE] = 0
    return buffer
