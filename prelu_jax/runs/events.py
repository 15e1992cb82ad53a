"""TensorBoard's files of events, as tensorboardX writes them."""

import sys
from typing import Any

from prelu_jax import extras

# tensorboardX imports PyTorch wherever it is installed, for the sake of an annotation: a second and
# a half of every start. Not to find it changes nothing else.
_modules: dict[str, Any] = sys.modules
_hidden = _modules.setdefault("torch", None) is None
try:
    with extras.needed(__name__, "train"):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2
finally:
    if _hidden:
        del sys.modules["torch"]

__all__ = ["EventsWriter", "event_pb2", "summary_pb2"]
