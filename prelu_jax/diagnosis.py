"""Any model's signal, measured, judged, and compared with the theory where its arch is known."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from prelu_jax import initializers, models, signal, theory
from prelu_jax.signal import Measurement, Report, checks


def diagnose(
    model: Any,
    *variables_and_batch: Any,
    loss: Callable[[Any], jax.Array] | None = None,
    weight_decay: float = 0.0,
    key: jax.Array | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Report:
    """Report where the signal of a model dies, forward or backward, and the remedy.

        report = pj.diagnose(model, variables, batch)    # Linen
        report = pj.diagnose(model, batch)               # NNX, Equinox
        report = pj.diagnose(function, params, batch)    # function(params, batch), Haiku
        print(report); report.plot(); report.assert_healthy()

    One jitted forward and backward pass (`signal.measure`); the model and its variables stay as
    they are. Networks of `models.build` also get the predictions of `theory.predict`, for the
    batch's own second moment and cosine, the slopes as they are, and independent weights of the
    variances that the kernels have: trained kernels may differ. For other models the predicted
    cosine of a layer is that of its input (`signal.LayerStatistics.input_cosine`).

    Args:
        model: a Linen or NNX module, Haiku's ``Transformed``, a callable pytree such as an Equinox
            module, or a function ``f(variables, *inputs)``; see `signal.measure`.
        *variables_and_batch: the model's variables, then the batch: the model's first argument, or
            a tuple of its positional arguments. For models that hold their variables, NNX modules
            and callable pytrees, the batch alone.
        loss: from the model's outputs to a scalar. By default unit Gaussian noise is sent back.
        weight_decay, key, rngs, call_kwargs, batch_size: as `signal.measure`.

    Raises:
        TypeError: the model is none of these, or the wrong number of arguments.
        ValueError: as `signal.measure`.
    """
    variables, batch = checks.variables_and_batch("diagnose", model, variables_and_batch)
    measurement = signal.measure(
        model,
        variables,
        batch,
        loss=loss,
        weight_decay=weight_decay,
        key=key,
        rngs=rngs,
        call_kwargs=call_kwargs,
        batch_size=batch_size,
    )
    predicted: dict[str, theory.LayerMoments] = {}
    if isinstance(model, models.RectifierNet) and measurement.first_nonfinite is None:
        # The theory has no pool after a pool, which a network may have.
        with contextlib.suppress(ValueError):
            predicted = _predict(model, variables["params"], batch, measurement)
    name = getattr(model, "__name__", type(model).__name__)
    report = Report(name, measurement, predicted)
    if not report.findings:
        return report
    found = _of_parameters(model, variables, batch, dict(call_kwargs or {}))
    return dataclasses.replace(report, of_parameters=found)


def _of_parameters(
    model: Any, variables: Any, batch: Any, call_kwargs: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the findings of an audit of the parameters, in sentences, if it can be made."""
    inputs = batch if type(batch) is tuple else (batch,)
    # Arrays on other hosts cannot be read, and a call may take keys that an audit does not give.
    with contextlib.suppress(ValueError, TypeError, RuntimeError):
        table = initializers.table(model, variables, *inputs, **call_kwargs)
        return tuple(map(str, table.findings))
    return ()


def _predict(
    model: models.RectifierNet, params: Mapping[str, Any], batch: Any, measurement: Measurement
) -> dict[str, theory.LayerMoments]:
    images = np.asarray(batch[0] if isinstance(batch, tuple) else batch, np.float64)
    second_moment = np.mean(np.square(images), axis=(0, 3))
    # Products of neighbours along a row: max pooling depends on their correlation.
    products = images[:, :, 1:] * images[:, :, :-1]
    neighbours = products.mean() / max(second_moment.mean(), 1e-300) if products.size else 0.0
    cosine = measurement.layers[0].input_cosine
    layers = theory.predict(
        model.arch,
        initializer={row.name: (row.kernel_rms or 0.0) ** 2 for row in measurement.layers},
        in_channels=images.shape[3],
        num_classes=model.num_classes,
        negative_slope=model.slopes(params),
        input_second_moment=second_moment,
        input_correlation=float(np.clip(neighbours, 0.0, 1.0)),
        # None for one example, nan where no two examples differ from zero.
        input_cosine=float(np.clip(np.nan_to_num(cosine or 0.0), -1.0, 1.0)),
        output_gradient_second_moment=measurement.layers[-1].gradient_second_moment,
    )
    return {layer.name: layer for layer in layers}
