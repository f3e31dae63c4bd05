"""What the configuration alone tells."""

from __future__ import annotations

from collections.abc import Iterator

from replicator.config.settings import Settings, mask_key_is_exposed, read_mask_key, table_settings
from replicator.config.table_setting import TableSettings
from replicator.errors import ConfigError
from replicator.preflight.finding import Finding, find_error


def check_mask_key(settings: Settings) -> Iterator[Finding]:
    """Find a mask key that cannot be read, or that everybody can read."""
    try:
        read_mask_key(settings)
    except ConfigError as error:
        yield find_error(error, id="mask_key_missing")
        return
    if mask_key_is_exposed(settings):
        path = settings.privacy.mask_key_file
        yield Finding(
            "mask_key_exposed",
            "warn",
            f"others than its owner may read {path}: whoever has the key can try out what was masked",
            f"chmod 600 {path}",
        )


def check_choices(settings: Settings) -> Iterator[Finding]:
    """Find settings that are allowed and yet rarely meant; those of `[defaults]` are told once, not for every table."""
    yield from _check_keys(settings.defaults, None)
    for entry in settings.tables:
        findings = _check_keys(table_settings(settings, entry), entry.name)
        own = {key for key in TableSettings.model_fields if getattr(entry, key) is not None}
        yield from (finding for finding in findings if finding.id in own)


def _check_keys(keys: TableSettings, table: str | None) -> Iterator[Finding]:
    where = "of the table" if table else "under [defaults]"
    if keys.max_delete_fraction >= 1.0:
        yield Finding(
            "max_delete_fraction",
            "warn",
            "max_delete_fraction is 1.0: no delete is stopped, not even when the source is empty",
            f"set max_delete_fraction = 0.1 {where} once the big delete is through",
            table,
        )
    if keys.on_row_error == "quarantine":
        yield Finding(
            "on_row_error",
            "warn",
            'on_row_error is "quarantine": what the target refuses is left out, and all else goes on',
            f'look at `replicator quarantine list` now and then, or set on_row_error = "stop" {where}',
            table,
        )
