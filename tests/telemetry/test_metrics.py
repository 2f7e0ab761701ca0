# SPDX-License-Identifier: Apache-2.0
"""Metrics and spans: those of the page and no others, only when asked for, and never whose data it is."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import sa_asherah
from sa_asherah import Asherah, KmsUnavailableError, WrongPartitionError
from sa_asherah.core.ports import KeyManagementService
from sa_asherah.telemetry import instrument, uninstrument
from tests.servers.database import async_url
from tests.telemetry.page import names, rows
from tests.telemetry.stage import Base, Patient, Stage, static

COMMON = {"asherah.service", "asherah.product"}


class Collector:
    """An SDK that keeps everything in memory."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))

    def watch(self, asherah: Asherah, **options: bool) -> None:
        instrument(asherah, meter_provider=self.meters, tracer_provider=self.tracers, **options)

    def points(self) -> Iterator[tuple[str, dict[str, Any], Any]]:
        """Yield name, attributes and point of everything measured."""
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        yield metric.name, dict(point.attributes or {}), point

    def total(self, name: str, **attributes: str) -> int:
        """Add up the counts of a metric."""
        wanted = {f"asherah.{key}": value for key, value in attributes.items()}
        return sum(
            point.count if hasattr(point, "count") else point.value
            for each, found, point in self.points()
            if each == name and wanted.items() <= found.items()
        )

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    def close(self) -> None:
        self.meters.shutdown()
        self.tracers.shutdown()


@pytest.fixture
def sdk() -> Iterator[Collector]:
    """An SDK of the test's own: no global provider is set."""
    collector = Collector()
    yield collector
    collector.close()


def general(name: str) -> str:
    """Return a metric's name as the page has it."""
    return re.sub(r"\.kms\.\w+\.", ".kms.static.", name)


@pytest.fixture
def played(stage: Stage, sdk: Collector) -> Stage:
    """A stage on which everything has happened under the eyes of the SDK."""
    stage.watch = lambda asherah: sdk.watch(asherah, decrypts=True)
    stage.play("the value")
    asherah, engine = stage.process(check_interval=timedelta(hours=1))
    with asherah.session("8") as session:
        session.decrypt(session.encrypt(b"data"))
    with Session(engine) as reader:
        reader.scalars(select(Patient.ssn).where(Patient.id == 1)).all()
    return stage


@pytest.mark.usefixtures("played")
def test_the_metrics_are_those_of_the_page_with_their_attributes(sdk: Collector) -> None:
    found: dict[str, set[str]] = {}
    for name, attributes, _ in sdk.points():
        assert attributes.keys() >= COMMON, name
        found.setdefault(general(name), set()).update(attributes.keys() - COMMON - {"error.type"})
    assert found == {row["metric"]: set(names(row["attributes"])) for row in rows("metric")}


@pytest.mark.usefixtures("played")
def test_each_timer_is_a_span_of_the_same_name_and_attributes(sdk: Collector) -> None:
    timers = {
        (name, frozenset(attributes.items()))
        for name, attributes, point in sdk.points()
        if hasattr(point, "bucket_counts")
    }
    spans = {(span.name, frozenset((span.attributes or {}).items())) for span in sdk.spans}
    silent = {(name, labels) for name, labels in timers if ("asherah.via", "statement") in labels} - spans
    assert spans == timers - silent
    assert {name for name, _ in silent} == {"ael.drr.decrypt"}


def test_events_and_their_counters_agree(played: Stage, sdk: Collector) -> None:
    told = [name for name, _ in played.told if name != "values_decrypted"]
    for name in set(told):
        thing, _, verb = name.rpartition("_")
        assert sdk.total(f"ael.{thing}.{verb}") == told.count(name), name
    values = sum(attributes["count"] for name, attributes in played.told if name == "values_decrypted")
    assert sdk.total("ael.values.decrypted") == values


@pytest.mark.usefixtures("played")
def test_nothing_says_whose_data_it_is(sdk: Collector) -> None:
    attributes = [*(found for _, found, _ in sdk.points()), *(dict(span.attributes or {}) for span in sdk.spans)]
    values = {str(value) for found in attributes for value in found.values()}
    assert values.isdisjoint({"7", "8"})
    assert not [value for value in values if "_IK_" in value]


def test_a_span_names_the_partition_of_a_session_if_asked_to(stage: Stage, sdk: Collector) -> None:
    stage.watch = lambda asherah: sdk.watch(asherah, partitions=True)
    asherah, engine = stage.process()
    asherah.create_metastore(engine)
    with asherah.session("owner-7") as session:
        session.decrypt(session.encrypt(b"data"))
    named = [span.name for span in sdk.spans if (span.attributes or {}).get("asherah.partition") == "owner-7"]
    assert named == ["ael.drr.encrypt", "ael.drr.decrypt"]
    assert not [found for _, found, _ in sdk.points() if "owner-7" in found.values()], "cardinality"


@pytest.fixture
def separate(tmp_path: Path) -> Iterator[tuple[Asherah, Engine]]:
    """An Asherah whose keys are remembered from statement to statement, since they are in a file of their own."""
    with ExitStack() as stack:
        engine, keys = (create_engine(f"sqlite:///{tmp_path / name}.db") for name in ("data", "keys"))
        stack.callback(engine.dispose)
        stack.callback(keys.dispose)
        asherah = stack.enter_context(Asherah("records", "clinic", static()))
        asherah.attach(engine, metastore=keys)
        asherah.create_metastore(keys)
        Base.metadata.create_all(engine)
        yield asherah, engine


def test_the_caches_count_hits_misses_and_what_is_stale(separate: tuple[Asherah, Engine], sdk: Collector) -> None:
    asherah, _ = separate
    sdk.watch(asherah)
    with asherah.session("7") as session:
        record = session.encrypt(b"data")
        assert sdk.total("ael.cache.miss", cache="latest") == 1
        for _ in range(3):
            session.encrypt(b"data")
        assert sdk.total("ael.cache.hit", cache="latest") == 3
        session.decrypt(record)
        assert sdk.total("ael.cache.hit", cache="meta") == 1
        asherah._attachment(separate[1]).hierarchy.distrust()
        session.encrypt(b"data")
        assert sdk.total("ael.cache.stale", cache="latest") == 1
    assert sdk.total("ael.drr.encrypt", via="session") == 5
    assert sdk.total("ael.kms.static.encryptkey") == 1
    assert sdk.total("ael.metastore.sql.loadlatest") == 2


def test_spans_hang_together(separate: tuple[Asherah, Engine], sdk: Collector) -> None:
    asherah, engine = separate
    sdk.watch(asherah)
    with Session(engine) as session:
        session.add_all([Patient(id=number, clinic_id=number % 3, ssn="ssn") for number in range(1, 10)])
        session.commit()
    children(sdk, "ael.drr.encrypt", {"ael.metastore.sql.loadlatest", "ael.metastore.sql.store", KMS})


KMS = "ael.kms.static.encryptkey"


def children(sdk: Collector, name: str, expected: set[str]) -> None:
    (parent,) = [span for span in sdk.spans if span.name == name]
    others = [span for span in sdk.spans if span is not parent]
    assert expected <= {span.name for span in others}
    for span in others:
        assert span.context is not None
        assert parent.context is not None
        assert span.context.trace_id == parent.context.trace_id, f"{span.name} is on its own"


async def test_spans_of_an_asynchronous_engine_hang_together(
    database_url: str, sdk: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(async_url(database_url))
    with Asherah("records", "clinic", static()) as asherah:
        asherah.attach(engine)
        async with engine.begin() as connection:
            await connection.run_sync(asherah.create_metastore)
            await connection.run_sync(Base.metadata.create_all)
        sdk.watch(asherah)
        async with AsyncSession(engine) as session:
            session.add_all([Patient(id=number, clinic_id=number % 3, ssn="ssn") for number in range(1, 10)])
            await session.commit()
        children(sdk, "ael.drr.encrypt", {"ael.metastore.sql.loadlatest", "ael.metastore.sql.store", KMS})
        await asyncio.gather(*(asherah.session_async(f"{owner}").encrypt(b"") for owner in range(3)))
    await engine.dispose()
    assert "detach" not in caplog.text, "a span ended in another context than it began in"


class Down(KeyManagementService):
    """A key service that cannot be reached, and whose error names the owner."""

    def encrypt_key(self, key: bytes) -> bytes:  # noqa: ARG002 -- the protocol's
        raise KmsUnavailableError("down for owner-7", retryable=True, operation="encrypt")

    def decrypt_key(self, blob: bytes) -> bytes:  # noqa: ARG002 -- the protocol's
        raise KmsUnavailableError("down for owner-7", retryable=True, operation="decrypt")

    def close(self) -> None:
        pass


def test_what_fails_is_timed_with_the_class_of_its_error_and_no_text(stage: Stage, sdk: Collector) -> None:
    stage.watch = sdk.watch
    asherah, engine = stage.process(Down())
    asherah.create_metastore(engine)
    with asherah.session("owner-7") as session, pytest.raises(KmsUnavailableError):
        session.encrypt(b"data")
    failed = {name for name, found, _ in sdk.points() if found.get("error.type") == "KmsUnavailableError"}
    assert failed == {"ael.drr.encrypt", "ael.kms.down.encryptkey"}
    for span in sdk.spans:
        if span.name in failed:
            assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())
        assert "owner-7" not in span.to_json()


def test_a_refusal_is_measured_too(separate: tuple[Asherah, Engine], sdk: Collector) -> None:
    asherah, _ = separate
    sdk.watch(asherah)
    record = asherah.session("7").encrypt(b"data")
    with pytest.raises(WrongPartitionError):
        asherah.session("8").decrypt(record)
    assert [found["error.type"] for name, found, _ in sdk.points() if name == "ael.drr.decrypt"] == [
        "WrongPartitionError"
    ]


def test_the_gauge_tells_how_long_writing_would_go_on(stage: Stage, sdk: Collector) -> None:
    stage.watch = sdk.watch
    asherah, engine = stage.process()
    asherah.create_metastore(engine)
    remaining = [point for name, _, point in sdk.points() if name == "ael.writes.remaining"]
    assert remaining == [], "no keys in memory yet"
    asherah.session("7").encrypt(b"data")
    (point,) = [point for name, _, point in sdk.points() if name == "ael.writes.remaining"]
    assert point.value == asherah.seconds_until_writes_stop()


def test_several_are_measured_side_by_side(stage: Stage, sdk: Collector, caplog: pytest.LogCaptureFixture) -> None:
    stage.watch = sdk.watch
    first, engine = stage.process()
    first.create_metastore(engine)
    others = [stage.process()[0] for _ in range(2)]
    sdk.watch(first)  # again
    for asherah in (first, *others):
        asherah.session("7").encrypt(b"data")
    assert sdk.total("ael.drr.encrypt") == 3
    assert caplog.records == [] or not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_nothing_is_measured_unless_asked_for_and_no_more_when_it_ends(stage: Stage, sdk: Collector) -> None:
    asherah, engine = stage.process()
    asherah.create_metastore(engine)
    uninstrument(asherah)
    asherah.session("7").encrypt(b"data")
    sdk.watch(asherah)
    uninstrument(asherah)
    asherah.session("7").encrypt(b"data")
    assert (list(sdk.points()), sdk.spans) == ([], ())
    assert not asherah.events.decrypts or stage.told


def test_an_instrumented_asherah_can_be_forgotten(sdk: Collector) -> None:
    import gc  # noqa: PLC0415
    import weakref  # noqa: PLC0415

    asherah = Asherah("records", "clinic", static())
    sdk.watch(asherah)
    forgotten = weakref.ref(asherah)
    del asherah
    gc.collect()
    assert forgotten() is None


PROGRAMS: dict[str, Callable[[], str]] = {
    "missing": lambda: (
        """
import sys
sys.modules["opentelemetry"] = None
from importlib import util
find = util.find_spec
util.find_spec = lambda name, package=None: None if name == "opentelemetry" else find(name, package)
from sa_asherah import ConfigurationError
try:
    import sa_asherah.telemetry
except ConfigurationError as error:
    print(error)
"""
    ),
    "global": lambda: (
        """
import warnings
warnings.simplefilter("ignore")
from sqlalchemy import create_engine
from sa_asherah import Asherah
from sa_asherah.telemetry import instrument
from tests.telemetry.stage import static
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
asherah = Asherah("records", "clinic", static())
instrument(asherah)  # before the application sets its provider
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
engine = create_engine("sqlite:///global.db")
asherah.attach(engine)
asherah.create_metastore(engine)
asherah.session("7").encrypt(b"data")
(resource,) = reader.get_metrics_data().resource_metrics
print(sorted({metric.name for scope in resource.scope_metrics for metric in scope.metrics}))
"""
    ),
}


def run(program: str, folder: Path) -> str:
    root, package = Path(__file__).parents[2], Path(sa_asherah.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}:{package}"}
    command = [sys.executable, "-c", PROGRAMS[program]()]
    done = subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    return done.stdout


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path) -> None:
    assert "pip install 'sa_asherah[otel]'" in run("missing", tmp_path)


def test_the_global_provider_is_used_even_if_it_is_set_later(tmp_path: Path) -> None:
    assert "ael.drr.encrypt" in run("global", tmp_path)
