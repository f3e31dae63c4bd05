"""The written configuration: complete, commented, and equal to the defaults when read back."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.config.settings import Settings, load_settings, source_dsn, target_dsn
from replicator.config.settings_source import known_keys
from replicator.config.table_setting import BY_COLUMN, TableEntry, TableSettings
from replicator.config.template import SuggestedTable, format_toml, render_config, setting_rows

EXAMPLE = re.compile(r"^# (\w+ = .*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("REPLICATOR_")]:
        monkeypatch.delenv(name)


def load_text(text: str, folder: Path) -> Settings:
    (folder / "replicator.toml").write_text(text)
    return load_settings(cwd=folder)


def test_what_init_writes_reads_back_as_the_defaults(tmp_path: Path) -> None:
    settings = load_text(render_config("service=chat", None, []), tmp_path)
    assert source_dsn(settings) == "service=chat"
    assert target_dsn(settings) is None
    assert settings.model_copy(update={"source": Settings().source}) == Settings()


def test_every_key_of_the_configuration_is_written_with_a_comment() -> None:
    text = render_config("service=chat", None, [])
    lines = text.splitlines()
    for key in known_keys(Settings):
        name = key.rpartition(".")[2]
        if key in {"tables", *Settings.model_fields, "changelog.tls"} and f"[{key}]" in text:
            continue
        at = [i for i, line in enumerate(lines) if re.match(rf"(# )?{name} = |# Keys of an entry", line)]
        assert at, key
        assert all(lines[i - 1].startswith("#") for i in at), key


def test_the_written_keys_are_those_of_the_model() -> None:
    written = tomllib.loads(render_config("service=chat", None, []))
    assert set(written) == set(Settings.model_fields) - {"tables"}
    for name in ("source", "target", "privacy", "schedule", "listen", "changelog", "serve", "alerts", "logs"):
        assert set(written[name]) == set(type(getattr(Settings(), name)).model_fields)
    assert set(written["defaults"]) == set(TableSettings.model_fields) - set(BY_COLUMN) - {"watermark_slack"}


def test_tables_come_with_their_key_and_watermark(tmp_path: Path) -> None:
    tables = [
        SuggestedTable('public."Odd ""T"""', key=("id", 'a"b'), watermark="updated_at"),
        SuggestedTable("crm.*"),
    ]
    settings = load_text(render_config("service=a", "service=b", tables), tmp_path)
    assert target_dsn(settings) == "service=b"
    assert settings.tables == (
        TableEntry(name='public."Odd ""T"""', key=("id", 'a"b'), watermark="updated_at"),
        TableEntry(name="crm.*"),
    )


def test_the_examples_in_its_comments_are_good(tmp_path: Path) -> None:
    text = render_config("service=chat", None, [])
    examples = [line for line in EXAMPLE.findall(text) if not line.startswith(("watermark_slack", "include"))]
    assert len(examples) == len(BY_COLUMN) + 1
    settings = load_text("[[tables]]\n" + "\n".join(examples), tmp_path)
    assert settings.tables[0].mask == {"contact_name": "hash"}
    assert load_text('[[tables]]\nname = "t"\ninclude = ["a"]\nwatermark_slack = "60s"', tmp_path).tables[0].include


def test_no_line_is_wider_than_a_screen() -> None:
    assert max(len(line) for line in render_config("service=chat", None, []).splitlines()) <= 110


def test_the_rows_name_every_key_once_with_default_and_description() -> None:
    rows = list(setting_rows())
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(row.description.endswith(".") for row in rows)
    in_file = {
        key for key in known_keys(Settings) if not any(other.startswith(f"{key}.") for other in known_keys(Settings))
    }
    shown = {key for key in in_file if not key.startswith(("tables.", "defaults."))}
    assert shown <= set(keys)
    table_keys = {key.partition(".")[2] for key in keys if key.startswith(("tables.", "defaults."))}
    assert table_keys == set(TableEntry.model_fields)
    defaults = {row.key: row.default for row in rows}
    assert defaults["lock_wait"] == '"30s"'
    assert defaults["defaults.xmin_scan_limit"] == '"8GB"'
    assert defaults["defaults.max_delete_fraction"] == "0.1"
    assert defaults["tables.mask"] == "{}"
    assert defaults["tables.name"] == ""
    assert defaults["target.dsn"] == '""'


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_survives_being_written_as_toml(text: str) -> None:
    written = f"a = {format_toml(text)}\nb = {format_toml({text: [text]})}\n"
    assert tomllib.loads(written) == {"a": text, "b": {text: [text]}}
