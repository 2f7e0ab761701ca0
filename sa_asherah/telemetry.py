# SPDX-License-Identifier: Apache-2.0
"""Metrics and spans through OpenTelemetry's API, for an application that asks for them: `instrument(asherah)`."""

from __future__ import annotations

import contextlib
import math
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from sa_asherah.errors import ConfigurationError

if find_spec("opentelemetry") is None:
    raise ConfigurationError("telemetry needs the package opentelemetry-api: pip install 'sa_asherah[otel]'")

from opentelemetry import metrics, trace
from opentelemetry.metrics import Observation
from opentelemetry.trace import StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, MeterProvider
    from opentelemetry.trace import TracerProvider

    from sa_asherah.sessions import Sessions

__all__ = ["instrument", "uninstrument"]

_NAME = "sa_asherah"
_LEVELS = {"_SK_": "system", "_IK_": "intermediate"}


def instrument(
    asherah: Sessions,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    decrypts: bool = False,
    partitions: bool = False,
) -> None:
    """Measure what an `Asherah` does from now on; a second call takes the place of the first.

    The page on events lists names and attributes. None holds a value or a key.

    Args:
        asherah: The `Asherah`.
        meter_provider: Takes the metrics; left out, the application's global one.
        tracer_provider: Takes the spans; left out, the application's global one.
        decrypts: Whether to count the values that statements decrypt, by table and column. It costs a little for each
            value.
        partitions: Whether spans of sessions name the partition. It is the owner's: a person, often.
    """
    uninstrument(asherah)
    meters = meter_provider or metrics.get_meter_provider()
    tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
    telemetry = _instrumented[asherah] = _Telemetry(asherah, meters, tracer, with_partitions=partitions)
    asherah.events.listen(telemetry.tell, decrypts=decrypts)
    asherah.events.meter = telemetry
    if meters not in _observed:
        _observed.add(meters)
        _observe(meters)


def uninstrument(asherah: Sessions) -> None:
    """Measure nothing any more; harmless if nothing was measured.

    Args:
        asherah: The `Asherah`.
    """
    telemetry = _instrumented.pop(asherah, None)
    if telemetry is not None:
        asherah.events.ignore(telemetry.tell)
        asherah.events.meter = None


class _Telemetry:
    """The meter of one `Asherah`, and a listener to its events."""

    def __init__(
        self, asherah: Sessions, meters: MeterProvider, tracer: trace.Tracer, *, with_partitions: bool
    ) -> None:
        self.meters = meters
        self.names = {"asherah.service": asherah.service, "asherah.product": asherah.product}
        self._meter = metrics.get_meter(_NAME, meter_provider=meters)
        self._tracer = tracer
        self._with_partitions = with_partitions
        # Two threads may make one at once: the SDK gives both the same.
        self._timers: dict[str, Histogram] = {}
        self._counters: dict[str, Counter] = {}

    @contextlib.contextmanager
    def measure(self, name: str, attributes: Mapping[str, str]) -> Generator[None]:
        """Measure a block, as a span and in a histogram."""
        labels = self.names | {f"asherah.{key}": value for key, value in attributes.items() if key != "partition"}
        start = time.perf_counter()
        with self._span(name, labels, attributes) as span:
            try:
                yield
            except BaseException as error:
                labels["error.type"] = type(error).__name__
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)  # its text may name an owner
                raise
            finally:
                self._timer(name).record(time.perf_counter() - start, labels)

    def count(self, name: str, number: int, attributes: Mapping[str, str]) -> None:
        """Count."""
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters[name] = self._meter.create_counter(f"ael.{name}")
        counter.add(number, self.names | {f"asherah.{key}": value for key, value in attributes.items()})

    def tell(self, name: str, attributes: Mapping[str, object]) -> None:
        """Count an event."""
        thing, _, verb = name.rpartition("_")
        if name == "values_decrypted":
            place = {key: str(attributes[key]) for key in ("table", "column") if attributes.get(key)}
            self.count("values.decrypted", int(str(attributes["count"])), place)
        else:
            self.count(f"{thing}.{verb}", 1, {"level": _LEVELS.get(str(attributes["id"])[:4], "")})

    def _span(
        self, name: str, labels: Mapping[str, str], attributes: Mapping[str, str]
    ) -> contextlib.AbstractContextManager[trace.Span]:
        if name == "drr.decrypt" and attributes["via"] == "statement":
            # There may be thousands in one statement, and each is over before a span for it would be.
            return contextlib.nullcontext(trace.INVALID_SPAN)
        told = dict(labels)
        if self._with_partitions and "partition" in attributes:
            told["asherah.partition"] = attributes["partition"]
        return self._tracer.start_as_current_span(
            f"ael.{name}", attributes=told, record_exception=False, set_status_on_exception=False
        )

    def _timer(self, name: str) -> Histogram:
        timer = self._timers.get(name)
        if timer is None:
            timer = self._timers[name] = self._meter.create_histogram(
                f"ael.{name}", "s", explicit_bucket_boundaries_advisory=_BOUNDS
            )
        return timer


_BOUNDS = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
_instrumented: WeakKeyDictionary[Sessions, _Telemetry] = WeakKeyDictionary()
_observed: WeakSet[MeterProvider] = WeakSet()


def _observe(meters: MeterProvider) -> None:
    """Have a provider ask how long writing would go on; once, however many it has to ask of."""
    metrics.get_meter(_NAME, meter_provider=meters).create_observable_gauge(
        "ael.writes.remaining",
        [_remaining(meters)],
        "s",
        "until the first owner cannot be written for, if neither key table nor key service answered any more",
    )


def _remaining(meters: MeterProvider) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        for asherah, telemetry in list(_instrumented.items()):
            seconds = asherah.seconds_until_writes_stop() if telemetry.meters is meters else math.inf
            if math.isfinite(seconds):
                yield Observation(seconds, telemetry.names)

    return observe
