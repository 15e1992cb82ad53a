"""The records that a run writes to metrics.jsonl, and those that a damaged file lacks."""

from collections.abc import Iterator, Sequence
from typing import Any

from prelu_jax.training.config import TrainConfig

_EVALUATION, _INTERVAL, _SIGNAL = "test_error", "train_loss", "signal_"  # first fields of each kind


def _expected(config: TrainConfig, step: int) -> Iterator[tuple[int, str]]:
    """Yield the step and the kind of every record that a run has written by the end of a step."""
    if step >= 0:
        yield 0, _EVALUATION
    for at in range(1, step + 1):
        last = at == config.num_steps
        if config.signal_every and at % config.signal_every == 0:
            yield at, _SIGNAL
        if at % config.log_every == 0 or last:
            yield at, _INTERVAL
        if at % config.eval_every == 0 or last:
            yield at, _EVALUATION


def _kind(record: dict[str, Any]) -> str:
    kinds = (_EVALUATION, _INTERVAL)
    return next((kind for kind in kinds if kind in record), _SIGNAL)


def missing(config: TrainConfig, records: Sequence[dict[str, Any]], step: int) -> list[int]:
    """Return the steps, up to one, of which a record is not there."""
    there = {(record["step"], _kind(record)) for record in records}
    return [at for at, kind in _expected(config, step) if (at, kind) not in there]
