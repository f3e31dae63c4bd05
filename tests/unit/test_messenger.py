"""What a sender's words mean."""

from __future__ import annotations

import pytest

from replicator.monitor.messenger import explain


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("Failed to send JSON POST notification: Internal server error., error=500.", "it answered 500"),
        (
            "Failed to send Slack notification: Unauthorized - Invalid Token., error=401.",
            "it answered 401: the credentials in the address are not right",
        ),
        (
            "Socket Exception: (535, b'5.7.8 Error: authentication failed: hunter2')",
            "it answered 535: the credentials in the address are not right",
        ),
        ("Socket Exception: (554, b'relay denied for hunter2')", "it answered 554"),
        (
            "Socket Exception: HTTPConnectionPool(host='hunter2', port=80): Failed to resolve 'hunter2'",
            "its name does not resolve",
        ),
        ("Socket Exception: [SSL: CERTIFICATE_VERIFY_FAILED] of hunter2", "its certificate is not trusted"),
        ("Socket Exception: HTTPConnectionPool(host='hunter2', port=80): Read timed out.", "no answer in time"),
        ("hunter2", "it did not take the notice"),
    ],
)
def test_why_an_alert_failed_is_told_in_our_own_words_alone(words: str, meaning: str) -> None:
    assert explain(["a line ahead of it", words]) == meaning
