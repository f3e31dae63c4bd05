#!/usr/bin/env bash
# Installs the nightly run: units, user and a first configuration. May be run again at any time.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: install-systemd.sh [--prefix DIR] [--serve] [--uninstall]

  --prefix DIR   where bin/replicator is (default: /usr/local)
  --serve        run `replicator serve` all day, which has a scheduler of its own, instead of the nightly timer
  --uninstall    remove the units and the user's definition; your configuration, logs and data stay

DESTDIR=/some/root in the environment installs into that tree instead of this machine: no user is made and
nothing is started. The configuration in /etc/replicator is never overwritten.
TEXT
}

fail() {
    printf 'install-systemd.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

units=(replicator-sync.service replicator-sync.timer replicator-serve.service replicator-alert@.service)
# What starts by itself, and what does not: `serve` and the timer would both start the nightly run.
chosen=replicator-sync.timer
other=replicator-serve.service
files="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/systemd"
root="${DESTDIR:-}"
prefix=/usr/local
action=install

while (($#)); do
    case "$1" in
        --prefix) [[ $# -ge 2 ]] || fail "--prefix needs a directory" 2; prefix="$2"; shift ;;
        --prefix=*) prefix="${1#*=}" ;;
        --serve) chosen=replicator-serve.service; other=replicator-sync.timer ;;
        --uninstall) action=uninstall ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "unknown option $1" 2 ;;
    esac
    shift
done

# The prefix becomes part of a unit file, where blanks, percent signs and quotes mean something.
[[ "$prefix" =~ ^/[A-Za-z0-9._/-]*$ ]] || fail "--prefix must be an absolute path of letters, digits, '.', '_' and '-'" 2
prefix="${prefix%/}"
[[ -z "$root" || "$root" = /* ]] || fail "DESTDIR must be an absolute path" 2
root="${root%/}"

# systemctl on this machine, or on the tree in DESTDIR, where only enable and disable mean something.
control() {
    if [[ -n "$root" ]]; then systemctl --quiet --root="$root" "$@"; else systemctl --quiet "$@"; fi
}

put() {
    install -C -D -m "$3" -- "$1" "$root$2"
}

install_units() {
    local unit text
    for unit in "${units[@]}"; do
        text="$(mktemp)"
        sed "s|/usr/local/bin/replicator|$prefix/bin/replicator|" "$files/$unit" >"$text"
        put "$text" "/etc/systemd/system/$unit" 0644
        rm -f -- "$text"
    done
}

install_config() {
    install -d -m 0750 -- "$root/etc/replicator"
    if [[ ! -e "$root/etc/replicator/replicator.toml" ]]; then
        put "$files/replicator.toml" /etc/replicator/replicator.toml 0640
    fi
    if [[ -z "$root" ]]; then
        chgrp -- replicator /etc/replicator /etc/replicator/replicator.toml
    fi
}

install_all() {
    if [[ -z "$root" && ! -x "$prefix/bin/replicator" ]]; then
        fail "there is no $prefix/bin/replicator: install the program first, or say --prefix DIR"
    fi
    put "$files/replicator.sysusers" /etc/sysusers.d/replicator.conf 0644
    if [[ -z "$root" ]]; then systemd-sysusers /etc/sysusers.d/replicator.conf; fi
    install_config
    install_units
    control disable "$other"
    control enable "$chosen"
    if [[ -z "$root" ]]; then
        systemctl daemon-reload
        systemctl stop "$other"
        if [[ "$chosen" = *.timer ]]; then
            systemctl start "$chosen"
            echo "Installed. Edit /etc/replicator/replicator.toml, then try it: systemctl start replicator-sync.service"
            systemctl list-timers --no-pager "$chosen"
        else
            echo "Installed. Edit /etc/replicator/replicator.toml, then start it: systemctl start $chosen"
        fi
    fi
}

uninstall_all() {
    local unit
    for unit in "$chosen" "$other"; do
        if [[ -e "$root/etc/systemd/system/$unit" ]]; then control disable "$unit"; fi
        if [[ -z "$root" ]]; then systemctl stop "$unit" 2>/dev/null || true; fi
    done
    if [[ -z "$root" ]]; then systemctl stop replicator-sync.service 2>/dev/null || true; fi
    for unit in "${units[@]}"; do rm -f -- "$root/etc/systemd/system/$unit"; done
    rm -f -- "$root/etc/sysusers.d/replicator.conf"
    if cmp -s -- "$files/replicator.toml" "$root/etc/replicator/replicator.toml"; then
        rm -- "$root/etc/replicator/replicator.toml"
    fi
    # What is not empty holds something of the user's and stays.
    rmdir --ignore-fail-on-non-empty -- "$root/etc/replicator" 2>/dev/null || true
    if [[ -z "$root" ]]; then
        systemctl daemon-reload
        echo "Removed. What you wrote into /etc/replicator, /var/lib/replicator, /var/log/replicator and the user stay."
    fi
}

if [[ -z "$root" && "$EUID" -ne 0 ]]; then fail "run this as root, or set DESTDIR"; fi
if ! command -v systemctl >/dev/null; then fail "there is no systemctl: this machine does not run systemd"; fi
"${action}_all"
