"""Passwords are taken out of anything that looks like a connection string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.telemetry.redaction import is_secret_key, redact_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:s3cret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:s3@c/ret@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("nats://:s3cret@a:4222", "nats://:***@a:4222"),
        ("host=h password=s3cret dbname=d", "host=h password=*** dbname=d"),
        ("password = 's3 cr\\'et' user=u", "password = *** user=u"),
        ("password=s3\\ cret user=u", "password=*** user=u"),
        ("password=s3'cret user=u", "password=*** user=u"),
        ("password='s3cret", "password=***"),
        ("postgresql://h/d?password=s3cret&sslmode=require", "postgresql://h/d?password=***&sslmode=require"),
        ("sslpassword=s3cret", "sslpassword=***"),
        ("PGPASSWORD=s3cret psql", "PGPASSWORD=*** psql"),
        ("{'password': 's3cret', 'host': 'h'}", "{'password': ***, 'host': 'h'}"),
        ('{"password": "s3cret"}', '{"password": ***}'),
        ("oauth_client_secret=s3cret", "oauth_client_secret=***"),
    ],
)
def test_a_password_is_hidden(text: str, expected: str) -> None:
    assert redact_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "password authentication failed for user u",
        "postgresql://u@h:5432/d",
        "https://host:8080/path",
        "passfile=/etc/pgpass",
        "10:30 mail a@b",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact_text(text) == text


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc", "Zs"]), min_size=8))
def test_no_password_gets_through_a_uri(password: str) -> None:
    assert redact_text(f"postgresql://user:{password}@host/db") == "postgresql://user:***@host/db"


def test_redaction_of_a_long_word_takes_no_time() -> None:
    assert redact_text("a" * 200_000) == "a" * 200_000


@pytest.mark.parametrize(
    ("key", "secret"), [("password", True), ("api_token", True), ("client_secret", True), ("table", False)]
)
def test_a_field_named_like_a_secret_is_one(key: str, secret: bool) -> None:
    assert is_secret_key(key) is secret
