"""Copies between host and device that run beside the computation: pinned memory and a stream for each way."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


class Transfer:
    """To and from one device, each way for one thread; on the CPU nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams: Any = None
        if device.type == "cuda":
            self._streams = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def here(self) -> AbstractContextManager[Any]:
        """A context in which the device is the current one."""
        return nullcontext() if self._streams is None else torch.cuda.device(self.device)

    def send(self, tensors: list[Tensor]) -> tuple[list[Tensor], Any]:
        """Tensors on the device, and an event: they have arrived."""
        if self._streams is None:
            return tensors, None
        with torch.cuda.stream(self._streams[0]):
            sent = [x.pin_memory().to(self.device, non_blocking=True) for x in tensors]
            return sent, self._streams[0].record_event()

    def arrived(self, tensors: list[Tensor], event: Any) -> None:
        """Let what the calling thread computes from now on wait for tensors that were sent."""
        if event is not None:
            _wait(torch.cuda.current_stream(self.device), tensors, event)

    def mark(self) -> Any:
        """An event behind all that the calling thread has computed."""
        return None if self._streams is None else torch.cuda.current_stream(self.device).record_event()

    def fetch(self, tensors: list[Tensor], event: Any) -> list[Tensor]:
        """Tensors on the host, when the event has happened."""
        if self._streams is None:
            return tensors
        with torch.cuda.stream(self._streams[1]):
            _wait(self._streams[1], tensors, event)
            found = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in tensors]
        self._streams[1].synchronize()
        return found


def _wait(stream: Any, tensors: list[Tensor], event: Any) -> None:
    stream.wait_event(event)
    for x in [x for x in tensors if x.is_cuda]:
        x.record_stream(stream)  # its memory is not given to others before this stream has used it
