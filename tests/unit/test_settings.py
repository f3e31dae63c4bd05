"""Loading the configuration: priority of sources, and errors that name keys and never values."""

from __future__ import annotations

import json
import os
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from replicator.config.settings import (
    Settings,
    dsn_has_password,
    load_settings,
    mask_key_is_exposed,
    read_mask_key,
    source_dsn,
    table_settings,
    target_dsn,
)
from replicator.config.table_setting import TableEntry, TableSettings
from replicator.errors import ConfigError

SECRET = "hunter2-topsecret"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("REPLICATOR_")]:
        monkeypatch.delenv(name)


def write_config(folder: Path, text: str, *, name: str = "replicator.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def fail_to_load(folder: Path, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(config, cwd=folder)
    everything = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + str(caught.value.hint)
    assert SECRET not in everything
    return caught.value.message


def test_nothing_at_all_gives_the_defaults(tmp_path: Path) -> None:
    assert load_settings(cwd=tmp_path) == Settings()


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = Settings()
    assert settings.lock_wait == timedelta(seconds=30)
    assert settings.source.max_hold == timedelta(seconds=60)
    assert settings.defaults.xmin_scan_limit == 8 * 1024**3
    assert settings.defaults.watermark_slack is None
    assert settings.defaults.audit_every == timedelta(days=7)
    assert settings.defaults.max_delete_fraction == 0.10
    assert settings.listen.batch_bytes == 64 * 1024**2
    assert settings.alerts.stale_after == timedelta(hours=26)
    assert settings.logs.dir == Path("logs/etl")
    assert (settings.slot_name, settings.publication_name) == ("replicator_default", "replicator_default")
    assert [entry.name for entry in settings.entries] == ["public.*"]


def test_the_environment_wins_over_dotenv_over_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(
        tmp_path,
        '[source]\ndsn = "file"\nlock_timeout = "1s"\nmax_hold = "1s"\n[logs]\nlevel = "error"\n',
    )
    write_config(tmp_path, "REPLICATOR_SOURCE__DSN=dotenv\nREPLICATOR_SOURCE__LOCK_TIMEOUT=2s\n", name=".env")
    monkeypatch.setenv("REPLICATOR_SOURCE__DSN", "environment")
    settings = load_settings(cwd=tmp_path)
    assert source_dsn(settings) == "environment"
    assert settings.source.lock_timeout == timedelta(seconds=2)
    assert settings.source.max_hold == timedelta(seconds=1)
    assert settings.source.connect_timeout == timedelta(seconds=10)
    assert settings.logs.level == "error"


def test_the_file_is_the_argument_else_the_variable_else_replicator_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path, 'pipeline = "here"')
    variable = write_config(tmp_path, 'pipeline = "variable"', name="v.toml")
    argument = write_config(tmp_path, 'pipeline = "argument"', name="a.toml")
    assert load_settings(cwd=tmp_path).pipeline == "here"
    monkeypatch.setenv("REPLICATOR_CONFIG", str(variable))
    assert load_settings(cwd=tmp_path).pipeline == "variable"
    assert load_settings(argument, cwd=tmp_path).pipeline == "argument"
    assert load_settings(Path("a.toml"), cwd=tmp_path).pipeline == "argument"


def test_dotenv_lies_beside_the_file_not_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    config = write_config(tmp_path / "etc", "")
    write_config(tmp_path / "etc", "REPLICATOR_PIPELINE=beside", name=".env")
    write_config(tmp_path, "REPLICATOR_PIPELINE=elsewhere", name=".env")
    assert load_settings(config, cwd=tmp_path).pipeline == "beside"


def test_a_file_that_was_named_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--config names it" in fail_to_load(tmp_path, Path("missing.toml"))
    monkeypatch.setenv("REPLICATOR_CONFIG", "missing.toml")
    assert "REPLICATOR_CONFIG names it" in fail_to_load(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        f"REPLICATOR_TARGET__DSN postgresql://u:{SECRET}@h/d",
        f"REPLICATOR_TARGET__DSN: postgresql://u:{SECRET}@h/d",
        f"REPLICATOR_TARGET__DSN:postgresql://u:{SECRET}@h/d",
        f"REPLICATOR_TARGET:postgresql://u:{SECRET}@h/d?sslmode=require",
        f"REPLICATOR_TARGET__DSN='postgresql://u:{SECRET}@h/d",
        "REPLICATOR_TARGET__DSN",
        f"export REPLICATOR_TARGET__DSN {SECRET}",
        f"OTHER {SECRET}",
    ],
)
def test_a_line_of_dotenv_that_says_nothing_is_named_by_its_number_alone(tmp_path: Path, line: str) -> None:
    """Passed over, it would leave the embedded target in the place of the one that was meant."""
    write_config(tmp_path, f"# a comment\nREPLICATOR_PIPELINE=p\n\n{line}\nBARE\n", name=".env")
    with pytest.raises(ConfigError, match=r"line 4 of .*\.env") as caught:
        load_settings(cwd=tmp_path)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in str(caught.value.hint)


def test_lists_and_tables_in_the_environment_are_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [{"name": "public.t", "key": ["id"], "mask": {"email": "hash"}, "watermark_slack": "2m"}]
    monkeypatch.setenv("REPLICATOR_TABLES", json.dumps(tables))
    monkeypatch.setenv("REPLICATOR_DEFAULTS__NULL_VALUES", '["NaT"]')
    monkeypatch.setenv("REPLICATOR_ALERTS__URLS", f'["json://{SECRET}@host"]')
    monkeypatch.setenv("REPLICATOR_CHANGELOG__TLS__CA", "ca.pem")
    monkeypatch.setenv("REPLICATOR_TARGET__DSN", "")
    settings = load_settings(cwd=tmp_path)
    assert settings.tables == (
        TableEntry(name="public.t", key=("id",), mask={"email": "hash"}, watermark_slack=timedelta(minutes=2)),
    )
    assert settings.defaults.null_values == ("NaT",)
    assert settings.changelog.tls.ca == Path("ca.pem")
    assert target_dsn(settings) is None
    assert SECRET not in repr(settings)


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    write_config(tmp_path, f'pipline = "x"\ndsn = "{SECRET}"\n[source]\ndns = "{SECRET}"\n[changelog.tls]\nkee = "x"\n')
    message = fail_to_load(tmp_path)
    assert "4 settings cannot be used" in message
    assert f"pipline ({tmp_path}/replicator.toml): unknown key; the nearest known one is pipeline" in message
    assert f"source.dns ({tmp_path}/replicator.toml): unknown key; the nearest known one is source.dsn" in message
    assert f"changelog.tls.kee ({tmp_path}/replicator.toml): unknown key; the nearest known one is changelog" in message
    assert f"dsn ({tmp_path}/replicator.toml): unknown key; the nearest known one is source.dsn" in message


def test_an_unknown_key_of_a_table_is_named(tmp_path: Path) -> None:
    write_config(tmp_path, '[[tables]]\nname = "a"\n[[tables]]\nname = "b"\nwatermrk = "x"\n')
    message = fail_to_load(tmp_path)
    assert "[[tables]] number 2, watermrk" in message
    assert "the nearest known one is tables.watermark" in message


def test_a_section_of_no_known_name_is_an_unknown_key(tmp_path: Path) -> None:
    write_config(tmp_path, "[sources]\ndsn = 'x'\n")
    assert "sources" in fail_to_load(tmp_path)


@pytest.mark.parametrize("source", ["environment", ".env"])
def test_an_unknown_variable_is_named_with_the_nearest_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    names = ["REPLICATOR_SOURCE_DSN", "REPLICATOR_SOURCE__DNS"]
    for name in names:
        if source == "environment":
            monkeypatch.setenv(name, SECRET)
    if source == ".env":
        write_config(tmp_path, "".join(f"{name}={SECRET}\n" for name in names), name=".env")
    message = fail_to_load(tmp_path)
    assert "REPLICATOR_SOURCE_DSN in " in message
    assert "unknown variable; the nearest known one is REPLICATOR_SOURCE__DSN" in message
    assert "source.dns (REPLICATOR_SOURCE__DNS" in message
    assert "2 settings" in message


def test_variables_of_others_are_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATOR_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("REPLICATOR_SERVICE_PORT_HTTP", "8321")
    monkeypatch.setenv("REPLICATOR_PORT", "tcp://10.0.0.1:8321")
    monkeypatch.setenv("REPLICATOR_PORT_8321_TCP_ADDR", "10.0.0.1")
    write_config(tmp_path, "POSTGRES_PASSWORD=x\nPGHOST=y\nREPLICATOR_CONFIG=z\n", name=".env")
    assert load_settings(cwd=tmp_path) == Settings()


def test_all_problems_come_in_one_message_and_none_with_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(
        tmp_path,
        f"""
        pipeline = "{SECRET}"
        lock_wait = "{SECRET}"
        [source]
        dsn = ["{SECRET}"]
        max_hold = 60
        [defaults]
        strategy = "{SECRET}"
        xmin_scan_limit = "{SECRET}"
        verify_share = "{SECRET}"
        max_delete_fraction = nan
        mask = {{ a = 1 }}
        [schedule]
        cron = "{SECRET}"
        timezone = "{SECRET}"
        [serve]
        port = 70000
        """,
    )
    monkeypatch.setenv("REPLICATOR_TABLES", f'[{{"name": "{SECRET}"')
    monkeypatch.setenv("REPLICATOR_LOGS", SECRET)
    message = fail_to_load(tmp_path)
    assert "14 settings cannot be used" in message
    for key in (
        "pipeline",
        "lock_wait",
        "source.dsn",
        "source.max_hold",
        "defaults.strategy",
        "defaults.xmin_scan_limit",
        "defaults.verify_share",
        "defaults.max_delete_fraction",
        "defaults.mask.a",
        "schedule.cron",
        "schedule.timezone",
        "serve.port",
        "tables (REPLICATOR_TABLES)",
        "logs (REPLICATOR_LOGS)",
    ):
        assert f"\n  - {key}" in message


@pytest.mark.parametrize("cron", ["0 3 * * * *", "0 3 * *", "@daily", "0 25 * * *", ""])
def test_a_cron_has_five_fields_that_say_when(tmp_path: Path, cron: str) -> None:
    """A sixth would count seconds first, and 0 3 * * * * run every hour."""
    write_config(tmp_path, f'[schedule]\ncron = "{cron}"')
    assert "schedule.cron" in fail_to_load(tmp_path)


@pytest.mark.parametrize("url", [SECRET, "ftp://x", "http://", "https:///v1/logs", "http://x:port/", "http://[::1"])
def test_logs_are_shipped_to_an_address_of_http_alone(tmp_path: Path, url: str) -> None:
    write_config(tmp_path, f'[logs]\nship_url = "{url}"')
    assert "logs.ship_url" in fail_to_load(tmp_path)
    write_config(tmp_path, '[logs]\nship_url = "https://user:password@collector.example:4318/v1/logs"')
    assert load_settings(cwd=tmp_path).logs.ship_url


def test_no_secret_shows_in_repr_or_in_a_validation_error() -> None:
    settings = Settings.model_validate({"source": {"dsn": f"password={SECRET}"}, "target": {"dsn": SECRET}})
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"source": {"dsn": [SECRET]}, "x": SECRET})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('pipeline = "a"\nlock_wait = \n', "at line 2, column 13"),
        ("[source\n", "line 1"),
        ('a = "x', "at end of document"),
    ],
)
def test_broken_toml_is_reported_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    write_config(tmp_path, text)
    message = fail_to_load(tmp_path)
    assert "is not valid TOML" in message
    assert place in message


def test_a_file_in_another_encoding_is_reported(tmp_path: Path) -> None:
    (tmp_path / "replicator.toml").write_bytes(f'pipeline = "\xe9{SECRET}"'.encode("latin-1"))
    assert "is not written in UTF-8" in fail_to_load(tmp_path)


def test_a_dotenv_in_another_encoding_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(f"REPLICATOR_SOURCE__DSN=\xe9{SECRET}".encode("latin-1"))
    assert ".env cannot be read" in fail_to_load(tmp_path)


def test_a_folder_in_place_of_the_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "replicator.toml").mkdir()
    assert "cannot be read" in fail_to_load(tmp_path)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ('include = ["a"]\nexclude = ["b"]', "include and exclude cannot stand together"),
        (
            "key = []",
            "key (",
        ),
        ('key = ["a", "a"]', "key names a column twice"),
        ('mask = { a = "" }', "mask.a ("),
        ('rename = { a = "x", b = "x" }', "rename gives two columns the same name"),
        ('target = "raw.*"', "target should name one table"),
        ('target = "a b"', "target ("),
        ('where = ""', "where ("),
        ('watermark_slack = "-1s"', "watermark_slack ("),
    ],
)
def test_a_table_entry_that_contradicts_itself_is_refused(tmp_path: Path, entry: str, complaint: str) -> None:
    write_config(tmp_path, f'[[tables]]\nname = "public.t"\n{entry}\n')
    message = fail_to_load(tmp_path)
    assert message.startswith("[[tables]] number 1")
    assert complaint in message


def test_a_table_entry_needs_a_name(tmp_path: Path) -> None:
    write_config(tmp_path, '[[tables]]\ntarget = "a"\n')
    assert "[[tables]] number 1, name" in fail_to_load(tmp_path)


def test_the_same_table_twice_is_refused_however_it_is_written(tmp_path: Path) -> None:
    write_config(tmp_path, '[[tables]]\nname = "T"\n[[tables]]\nname = "public.\\"t\\""\n')
    assert "twice" in fail_to_load(tmp_path)


@pytest.mark.parametrize("line", ['name = "a"', 'target = "b"'])
def test_defaults_take_no_name_and_no_target(tmp_path: Path, line: str) -> None:
    write_config(tmp_path, f"[defaults]\n{line}\n")
    assert "unknown key" in fail_to_load(tmp_path)


def test_the_slot_must_be_a_name_postgresql_takes(tmp_path: Path) -> None:
    write_config(tmp_path, '[listen]\nslot = "Replicator-<pipeline>"\n')
    assert "listen.slot should be at most 63 of a-z, 0-9 and _" in fail_to_load(tmp_path)


def test_the_pipeline_is_part_of_slot_publication_and_stream() -> None:
    settings = Settings(pipeline="chat")
    assert settings.slot_name == settings.publication_name == settings.stream_name == "replicator_chat"


def test_every_key_of_a_table_can_stand_in_an_entry_and_in_the_defaults() -> None:
    assert set(TableEntry.model_fields) == set(TableSettings.model_fields) | {"name", "target"}


def test_the_entry_decides_before_the_defaults_before_the_built_in_value() -> None:
    settings = Settings(
        defaults=TableSettings(strategy="full", deletes="soft", null_values=("NaT",)),
        tables=(TableEntry(name="t", deletes="hard", null_values=(), key=("id",)),),
    )
    decided = table_settings(settings, settings.tables[0])
    assert (decided.strategy, decided.deletes, decided.null_values) == ("full", "hard", ())
    assert (decided.key, decided.indexes, decided.watermark_slack) == (("id",), "key", None)
    assert table_settings(settings, None) == settings.defaults


def test_a_mask_of_the_entry_does_not_lift_those_of_the_defaults() -> None:
    settings = Settings(defaults=TableSettings(mask={"email": "hash", "phone": "null"}, rename={"a": "b"}))
    decided = table_settings(settings, TableEntry(name="t", mask={"phone": "hash"}, rename={"c": "d"}))
    assert decided.mask == {"email": "hash", "phone": "hash"}
    assert decided.rename == {"a": "b", "c": "d"}


def test_include_of_the_entry_takes_the_place_of_exclude_in_the_defaults() -> None:
    settings = Settings(defaults=TableSettings(exclude=("a",)))
    decided = table_settings(settings, TableEntry(name="t", include=("b",)))
    assert (decided.include, decided.exclude) == (("b",), None)
    assert table_settings(settings, TableEntry(name="t")).exclude == ("a",)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().source.dsn = SecretStr("x")


def test_a_command_that_needs_the_source_says_which_key_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"source\.dsn is not set") as caught:
        source_dsn(Settings())
    assert "REPLICATOR_SOURCE__DSN" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "key"),
    [(b"abc", b"abc"), (b"abc\n", b"abc"), (b"abc\r\n", b"abc"), (b"abc\n\n", b"abc\n"), (b" a ", b" a ")],
)
def test_the_mask_key_is_the_file_without_its_last_line_end(tmp_path: Path, content: bytes, key: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    settings = Settings.model_validate({"privacy": {"mask_key_file": str(tmp_path / "key")}})
    assert read_mask_key(settings) == key


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe" + SECRET.encode(), b"a\0" + SECRET.encode()])
def test_a_mask_key_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    settings = Settings.model_validate({"privacy": {"mask_key_file": str(tmp_path / "key")}})
    with pytest.raises(ConfigError, match=r"privacy\.mask_key_file") as caught:
        read_mask_key(settings)
    assert SECRET not in caught.value.message


def test_no_mask_key_file_means_no_mask_key() -> None:
    assert read_mask_key(Settings()) is None
    assert not mask_key_is_exposed(Settings())


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_mask_key_that_others_may_read_is_exposed(tmp_path: Path, mode: int, exposed: bool) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k")
    path.chmod(mode)
    assert mask_key_is_exposed(Settings.model_validate({"privacy": {"mask_key_file": path}})) is exposed


@pytest.mark.parametrize(
    ("dsn", "found"),
    [
        ("postgresql://u:p@h/d", True),
        ("postgres://u@h/d?password=p", True),
        ("host=h password='a b'", True),
        ("host=h sslpassword=p", True),
        ("postgresql://u@h/d", False),
        ("postgresql://u:@h/d", False),
        ("service=chatwoot", False),
        ("host=password", False),
        ("", False),
    ],
)
def test_a_password_in_a_connection_string_is_found(dsn: str, found: bool) -> None:
    assert dsn_has_password(dsn) is found


@pytest.mark.parametrize("dsn", [f"postgresql://u:{SECRET}@h:port:port/%zz", f"{SECRET}", f"passwrd={SECRET}"])
def test_what_is_no_connection_string_is_refused_without_repeating_it(dsn: str) -> None:
    with pytest.raises(ConfigError, match="not a connection string") as caught:
        dsn_has_password(dsn)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
