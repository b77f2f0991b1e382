"""`BufferDict`: named tensors that a guide updates in closed form."""

from __future__ import annotations

from torch import Tensor, nn


class BufferDict(nn.Module):
    """Buffers by key, as a ParameterDict holds parameters."""

    @classmethod
    def of(cls, other: BufferDict) -> BufferDict:
        """The same tensors in a module of its own: assigning to one leaves the other."""
        made = cls()
        made._buffers = dict(other._buffers)
        return made

    def __setitem__(self, key: str, value: Tensor) -> None:
        if key in self._buffers and self._buffers[key] is not None:
            self._buffers[key] = value.to(self._buffers[key])
        else:
            self.register_buffer(key, value)

    def __getitem__(self, key: str) -> Tensor:
        value = self._buffers[key]
        assert value is not None
        return value
