"""Read Prometheus' text format in tests, with the library's own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read_samples(text: str) -> Samples:
    """Return every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value_of(text: str, name: str, **labels: str) -> float | None:
    """Return the one sample whose labels hold `labels`; None without one."""
    found = [
        value for (sample, all_labels), value in read_samples(text).items()
        if sample == name and labels.items() <= dict(all_labels).items()
    ]  # fmt: skip
    assert len(found) <= 1, f"{len(found)} samples of {name} {labels}"
    return found[0] if found else None
