"""GatheredLatency reports the same histogram as single observations."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from shared.messaging.consume.measuring import GatheredLatency


@given(st.lists(st.sampled_from([0.0, 0.1, 0.1000001, 0.5, 1.0, 7.0, 10.0, 1e9]), max_size=30))
def test_gathered_observations_are_the_same_as_single_ones(values: list[float]) -> None:
    registry = CollectorRegistry()
    single, gathered = (
        Histogram(name, "of a test", ["topic"], buckets=(0.1, 1.0, 10.0), registry=registry)
        for name in ("single", "gathered")
    )
    batch = GatheredLatency(gathered, topic="t")
    for value in values:
        single.labels(topic="t").observe(value)
        batch.observe(value)
    batch.flush()
    for suffix, labels in [
        ("count", {}),
        ("sum", {}),
        *(("bucket", {"le": bound}) for bound in ("0.1", "1.0", "10.0", "+Inf")),
    ]:
        told = [registry.get_sample_value(f"{n}_{suffix}", {"topic": "t"} | labels) for n in ("single", "gathered")]
        assert abs((told[0] or 0) - (told[1] or 0)) < 1e-6 * (1 + (told[0] or 0))
