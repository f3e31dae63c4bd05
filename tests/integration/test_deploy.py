"""The units, their installer and the files for containers, judged by the tools that read them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from ruamel.yaml import YAML

from replicator.config.settings import load_settings, source_dsn
from replicator.errors import EXIT_CONFIG, EXIT_USAGE
from tests.conftest import MakeCluster
from tests.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ("replicator-alert@.service", "replicator-serve.service", "replicator-sync.service", "replicator-sync.timer")
SERVICES = ("replicator-serve.service", "replicator-sync.service")
MAX_EXPOSURE = 2.0


def run(*command: str | Path, env: dict[str, str] | None = None, check: int | None = 0) -> str:
    """Run a program and return all that it prints; `check` is the exit code expected (None: any)."""
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        env=os.environ | (env or {}),
    )  # fmt: skip
    assert check in (None, done.returncode), f"{command} ended with {done.returncode}\n{done.stdout}"
    return done.stdout


def find_tool(name: str) -> Path:
    """Return a program of the development environment, whether or not that is activated."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is missing: install the group dev"
    return Path(found)


class Tree:
    """A directory that stands for a machine's root, and a program where the units look for it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.prefix = folder / "root", folder / "prefix"
        program = self.prefix / "bin" / "replicator"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)

    def install(self, *options: str, check: int = 0) -> str:
        """Run the installer on the tree."""
        program = DEPLOY / "install-systemd.sh"
        return run(program, "--prefix", self.prefix, *options, env={"DESTDIR": str(self.root)}, check=check)

    def list(self) -> dict[str, tuple[int, int, str]]:
        """Return mode, time of change and content of everything in the tree but directories' times."""
        return {str(path.relative_to(self.root)): describe(path) for path in self.root.rglob("*")}

    def files(self) -> set[str]:
        """Return the paths of what is no directory."""
        return {name for name in self.list() if not (self.root / name).is_dir()}

    def unit(self, name: str) -> Path:
        return self.root / "etc/systemd/system" / name

    @property
    def config(self) -> Path:
        return self.root / "etc/replicator/replicator.toml"


def describe(path: Path) -> tuple[int, int, str]:
    facts = path.lstat()
    if path.is_symlink():
        return facts.st_mode, 0, str(path.readlink())
    return (facts.st_mode, 0, "") if path.is_dir() else (facts.st_mode, facts.st_mtime_ns, path.read_text())


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    tree.install()
    return tree


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take away the variables that the tests themselves, or whoever runs them, have set for the tool."""
    for name in [name for name in os.environ if name.startswith("REPLICATOR_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def read_unit(path: Path) -> dict[str, list[str]]:
    """Return every value of every key, whatever its section."""
    values: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


# ------------------------------------------------------------------------------------------------ systemd


def test_systemd_finds_nothing_to_say_against_the_units(tree: Tree) -> None:
    assert run("systemd-analyze", "verify", "--man=no", *map(tree.unit, UNITS)) == ""


def test_systemd_would_notice_a_program_that_is_not_there(tree: Tree) -> None:
    (tree.prefix / "bin" / "replicator").unlink()
    assert "is not executable" in run("systemd-analyze", "verify", "--man=no", tree.unit(UNITS[1]), check=1)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_hardly_exposed(tree: Tree, service: str) -> None:
    command = ("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={MAX_EXPOSURE * 10:.0f}")
    report = run(*command, tree.unit(service))
    exposure = re.search(rf"Overall exposure level for {service}: ([0-9.]+)", report)
    assert exposure is not None, report
    assert float(exposure[1]) <= MAX_EXPOSURE


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "America/Sao_Paulo"])
def test_the_timer_starts_the_sync_at_three_each_night(tree: Tree, timezone: str) -> None:
    (calendar,) = read_unit(tree.unit("replicator-sync.timer"))["OnCalendar"]
    base = ("--base-time=2026-10-24 12:00:00", "--iterations=3")
    report = run("systemd-analyze", "calendar", *base, calendar, env={"TZ": timezone, "LC_ALL": "C"})
    elapses = re.findall(r"(?:Next elapse|Iter\. #\d): \w+ (\S+ \S+)", report)
    assert elapses == ["2026-10-25 03:00:00", "2026-10-26 03:00:00", "2026-10-27 03:00:00"]


def test_the_timer_is_punctual_and_catches_up_a_missed_night(tree: Tree) -> None:
    timer = read_unit(tree.unit("replicator-sync.timer"))
    assert (timer["Persistent"], timer["RandomizedDelaySec"], timer["AccuracySec"]) == (["yes"], ["0"], ["1s"])


@pytest.mark.parametrize("service", SERVICES)
def test_the_alert_is_started_for_the_service_that_failed(tree: Tree, service: str) -> None:
    assert read_unit(tree.unit(service))["OnFailure"] == ["replicator-alert@%n.service"]


def test_both_services_live_in_the_same_sandbox(tree: Tree) -> None:
    own = {"ExecStart", "Description", "Type", "NotifyAccess", "WatchdogSec", "Conflicts", "WantedBy"}
    serve, sync = (
        {
            key: value
            for key, value in read_unit(tree.unit(service)).items()
            if not key.startswith(("Restart", "StartLimit"))
        }
        for service in SERVICES
    )
    assert {key: value for key, value in serve.items() if key not in own} == {
        key: value for key, value in sync.items() if key not in own
    }


def test_serve_is_watched_and_started_again_and_has_the_night_to_itself(tree: Tree) -> None:
    serve = read_unit(tree.unit("replicator-serve.service"))
    assert (serve["Type"], serve["NotifyAccess"], serve["Restart"]) == (["notify"], ["main"], ["on-failure"])
    assert serve["RestartPreventExitStatus"] == [f"{EXIT_USAGE} {EXIT_CONFIG}"]
    assert serve["Conflicts"] == ["replicator-sync.timer"]


@pytest.mark.parametrize("has_hook", [True, False])
def test_the_alert_writes_one_critical_line_and_runs_the_hook(tree: Tree, tmp_path: Path, has_hook: bool) -> None:
    told = tmp_path / "told"
    hook = tmp_path / "on-failure"
    hook.write_text(f'#!/bin/sh\necho "$1" >{told}\n')
    hook.chmod(0o755 if has_hook else 0o644)
    env = {"MONITOR_SERVICE_RESULT": "exit-code", "MONITOR_EXIT_STATUS": "6"}
    printed = ""
    for line in read_unit(tree.unit("replicator-alert@.service"))["ExecStart"]:
        script = re.fullmatch(r"/bin/sh -c '(.*)' sh %i", line)
        assert script is not None, line
        text = script[1].replace("$$", "$").replace("%i", "replicator-sync.service")
        text = text.replace("/etc/replicator/on-failure", str(hook))
        printed += run("/bin/sh", "-c", text, "sh", "replicator-sync.service", env=env)
    unit = "replicator-sync.service"
    assert printed == f"<2>{unit} failed (exit-code, status 6): see journalctl -u {unit}\n"
    assert (told.read_text() if told.exists() else "") == ("replicator-sync.service\n" if has_hook else "")


def test_the_first_configuration_keeps_to_the_directories_the_unit_makes(tree: Tree) -> None:
    config = tomllib.loads(tree.config.read_text())
    service = read_unit(tree.unit("replicator-sync.service"))
    assert [config["data_dir"]] == [f"/var/lib/{name}" for name in service["StateDirectory"]]
    assert [config["logs"]["dir"]] == [f"/var/log/{name}" for name in service["LogsDirectory"]]
    assert "REPLICATOR_CONFIG=/etc/replicator/replicator.toml" in service["Environment"]


def test_the_first_configuration_is_valid_and_complete(tree: Tree, own_environment: pytest.MonkeyPatch) -> None:
    settings = load_settings(tree.config)
    assert source_dsn(settings) == "service=source"


# -------------------------------------------------------------------------------------------- the installer


def test_installing_puts_each_file_in_its_place(tree: Tree) -> None:
    system = "etc/systemd/system"
    assert tree.files() == {
        "etc/replicator/replicator.toml",
        "etc/sysusers.d/replicator.conf",
        f"{system}/timers.target.wants/replicator-sync.timer",
        *(f"{system}/{unit}" for unit in UNITS),
    }
    assert tree.config.stat().st_mode & 0o777 == 0o640
    assert tree.config.parent.stat().st_mode & 0o777 == 0o750
    (start,) = read_unit(tree.unit("replicator-sync.service"))["ExecStart"]
    assert start == f"{tree.prefix}/bin/replicator sync --triggered-by scheduler"


def test_installing_twice_gives_the_same_tree(tree: Tree) -> None:
    before = tree.list()
    assert tree.install() == ""
    assert tree.list() == before


def test_serve_takes_the_timer_s_place_and_gives_it_back(tree: Tree) -> None:
    system = "etc/systemd/system"
    serve, timer = (
        f"{system}/multi-user.target.wants/replicator-serve.service",
        f"{system}/timers.target.wants/replicator-sync.timer",
    )
    for options, there, gone in (((), timer, serve), (("--serve",), serve, timer), ((), timer, serve)):
        tree.install(*options)
        assert there in tree.files()
        assert gone not in tree.files()
    tree.install("--serve")
    tree.install("--uninstall")
    assert tree.files() == set()


def test_installing_again_replaces_units_and_keeps_the_configuration(tree: Tree) -> None:
    tree.config.write_text("pipeline = 'mine'\n")
    tree.unit("replicator-sync.timer").write_text("of an older release")
    tree.install()
    assert tree.config.read_text() == "pipeline = 'mine'\n"
    assert tree.unit("replicator-sync.timer").read_text() == (DEPLOY / "systemd/replicator-sync.timer").read_text()


def test_uninstalling_removes_all_that_was_installed(tree: Tree) -> None:
    tree.install("--uninstall")
    assert tree.files() == set()
    assert not tree.config.parent.exists()
    tree.install("--uninstall")


def test_uninstalling_leaves_what_the_user_wrote(tree: Tree) -> None:
    tree.config.write_text("pipeline = 'mine'\n")
    env = tree.config.with_name("env")
    env.write_text("PGPASSWORD=x\n")
    tree.install("--uninstall")
    assert tree.files() == {"etc/replicator/replicator.toml", "etc/replicator/env"}


def test_the_user_is_made_without_a_shell(tree: Tree) -> None:
    definition = tree.root / "etc/sysusers.d/replicator.conf"
    for _ in range(2):
        run("systemd-sysusers", f"--root={tree.root}", definition)
    (entry,) = [line for line in (tree.root / "etc/passwd").read_text().splitlines() if line.startswith("replicator:")]
    *_, home, shell = entry.split(":")
    assert (home, Path(shell).name) == ("/var/lib/replicator", "nologin")


@pytest.mark.parametrize("options", [["--prefix"], ["--prefix", "relative"], ["--prefix", "/a b"], ["--what"]])
def test_the_installer_refuses_what_it_does_not_understand(tmp_path: Path, options: list[str]) -> None:
    root = tmp_path / "root"
    run(DEPLOY / "install-systemd.sh", *options, env={"DESTDIR": str(root)}, check=2)
    assert not root.exists()


def test_the_scripts_are_clean_for_shellcheck() -> None:
    assert run(find_tool("shellcheck"), *DEPLOY.rglob("*.sh")) == ""


# ----------------------------------------------------------------------------------------------- containers


@pytest.fixture(scope="module")
def compose() -> Any:
    return YAML(typ="safe").load(ROOT / "docker-compose.yml")


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert run(find_tool("hadolint"), "--no-color", DEPLOY / "Dockerfile") == ""


def test_the_image_runs_as_nobody_special_and_knows_its_health() -> None:
    last_stage = (DEPLOY / "Dockerfile").read_text().rpartition("FROM ")[2]
    (user,) = re.findall(r"^USER (.+)$", last_stage, re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert re.search(r'^HEALTHCHECK .*CMD \["replicator", "health"\]$', last_stage, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["replicator"\]$', last_stage, re.MULTILINE)


def test_every_package_in_the_image_is_pinned_by_hash() -> None:
    """The project's own wheel is the one install without hashes: it is built from this tree."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    installs = re.findall(r"pip (?:install|wheel) ([^&\n]+)", text)
    assert len(installs) == 2
    for options in installs:
        assert "--require-hashes " in options or "--no-deps " in options


def test_the_build_context_holds_what_the_dockerfile_copies() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    copied = {name.rstrip("/") for line in lines for name in line.split()}
    ignored, *allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert ignored == "*"
    assert copied == {name[1:] for name in allowed if name.startswith("!")}
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


def test_the_compose_file_follows_the_compose_specification() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    run(sys.executable, "-m", "check_jsonschema", *schema, ROOT / "docker-compose.yml")


def test_no_service_has_more_rights_than_it_needs(compose: Any) -> None:
    forbidden = {"privileged", "cap_add", "network_mode", "pid", "ipc", "userns_mode", "devices"}
    for name, service in compose["services"].items():
        assert forbidden.isdisjoint(service)
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not any("docker.sock" in volume for volume in service.get("volumes", []))
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        if name not in ("source", "target"):
            assert service["cap_drop"] == ["ALL"]
    for name in ("nightly", "serve", "workload"):
        assert compose["services"][name]["read_only"] is True


IMAGES = {
    "postgres:18", "prom/prometheus", "grafana/loki", "grafana/grafana", "timberio/vector", "nats",
}  # fmt: skip


def test_every_service_is_a_known_image_of_a_pinned_version_or_ours(compose: Any) -> None:
    for service in compose["services"].values():
        if "build" in service:
            assert service["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile"}
            continue
        name, _, version = service["image"].partition(":")
        assert {name, service["image"]} & IMAGES
        assert re.fullmatch(r"v?\d[\w.-]*", version)


def test_profiles_start_what_they_say_and_nothing_else(compose: Any) -> None:
    by_profile: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        for profile in service.get("profiles", [""]):
            by_profile.setdefault(profile, set()).add(name)
    assert by_profile == {
        "": {"source", "target"},
        "nightly": {"nightly"},
        "demo": {"serve", "workload"},
        "observability": {"prometheus", "loki", "collector", "grafana"},
        "nats": {"nats"},
    }


def test_what_listens_needs_a_token_and_a_source_that_can_be_followed(compose: Any) -> None:
    serve, source = compose["services"]["serve"], compose["services"]["source"]
    assert serve["command"] == ["serve", "--listen"]
    assert serve["environment"]["REPLICATOR_SERVE__TOKEN_FILE"] == "/run/secrets/api_token"
    assert serve["secrets"] == ["api_token"]
    assert compose["secrets"]["api_token"] == {"environment": "API_TOKEN"}
    assert "wal_level=logical" in source["command"]
    scrape = YAML(typ="safe").load(DEPLOY / "compose/prometheus.yml")["scrape_configs"][0]
    assert scrape["static_configs"] == [{"targets": [f"{serve['hostname']}:8321"]}]
    assert scrape["authorization"] == {"credentials_file": "/run/secrets/api_token"}


def test_the_nightly_job_waits_for_both_servers_and_ends_by_itself(compose: Any) -> None:
    nightly = compose["services"]["nightly"]
    assert nightly["command"] == ["sync", "--triggered-by", "scheduler"]
    assert (nightly["profiles"], nightly["restart"]) == (["nightly"], "no")
    assert nightly["depends_on"] == {side: {"condition": "service_healthy"} for side in ("source", "target")}


def test_data_lives_in_named_volumes_and_mounted_files_exist(compose: Any) -> None:
    named = set()
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            origin, _, *mode = volume.split(":")
            if origin.startswith("."):
                assert (ROOT / origin).is_file()
                assert mode == ["ro"]
            else:
                named.add(origin)
    assert named == set(compose["volumes"])


def test_the_nightly_job_needs_no_configuration_file(
    compose: Any, tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    (in_image,) = re.findall(r"^ENV PATH=\S+ (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    environment = dict(part.split("=", 1) for part in in_image.split())
    environment |= {name: re.sub(r"\$\{.*?\}", "x", value) for name, value in nightly_environment(compose).items()}
    for name, value in environment.items():
        own_environment.setenv(name, value)
    settings = load_settings(cwd=tmp_path)
    assert source_dsn(settings) == "postgresql://replicator_reader:x@source/app"
    assert (settings.logs.dir, settings.data_dir) == (None, Path("/var/lib/replicator"))


def nightly_environment(compose: Any) -> dict[str, str]:
    environment: dict[str, str] = compose["services"]["nightly"]["environment"]
    return environment


def test_every_password_comes_from_the_environment_and_is_in_the_example(compose: Any) -> None:
    asked = set()
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            asked.update(re.findall(r"\$\{(\w+):\?", value))
            if name.endswith("PASSWORD"):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", value)
            if name.endswith("DSN"):
                assert re.match(r"postgresql://\w+:\$\{\w+:\?[^}]*\}@", value)
    asked |= {secret["environment"] for secret in compose["secrets"].values()}
    example = (DEPLOY / "compose/example.env").read_text()
    assert asked == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))


def test_prometheus_of_the_containers_has_the_same_rules_and_job() -> None:
    ours, theirs = (
        YAML(typ="safe").load(DEPLOY / name) for name in ("prometheus/prometheus.yml", "compose/prometheus.yml")
    )
    for config in (ours, theirs):
        for job in config["scrape_configs"]:
            job.pop("static_configs")
            job.pop("authorization", None)
    assert ours == theirs


def test_the_containers_of_the_demo_would_work_together(
    make_cluster: MakeCluster, tmp_path: Path, compose: Any, own_environment: pytest.MonkeyPatch
) -> None:
    """First start of both servers, the workload, and the listener, with what the compose file gives each of them."""
    services = compose["services"]
    settings = dict(part.split("=") for part in services["source"]["command"] if "=" in part)
    cluster = make_cluster(settings=settings)
    path = f"{cluster.bin}{os.pathsep}{os.environ['PATH']}"
    for side, database, role in (("source", "app", "READER"), ("target", "analytics", "WRITER")):
        text = (
            (DEPLOY / f"compose/{side}.sql").read_text().replace("/sql/roles.sql", str(ROOT / f"sql/{side}/roles.sql"))
        )
        script = tmp_path / f"{side}.sql"
        script.write_text(text)
        cluster.create_database(database)
        psql = ("-X", "-v", "ON_ERROR_STOP=1", "-d", cluster.admin_dsn(database), "-f", script)
        run(cluster.bin / "psql", *psql, env={f"{role}_PASSWORD": "x" * 20})
    facts = conninfo_to_dict(cluster.admin_dsn("app"))
    server = {f"PG{name.upper()}": str(value) for name, value in facts.items()} | {"PGDATABASE": "app", "PATH": path}
    tool = {
        name: re.sub(r"\$\{.*?\}", "x" * 20, value)
        .replace("@source/", f"@127.0.0.1:{cluster.port}/")
        .replace("@target/", f"@127.0.0.1:{cluster.port}/")
        for name, value in services["serve"]["environment"].items()
        if name.endswith("DSN")
    }
    workload = subprocess.Popen(
        ["/bin/sh", DEPLOY / "compose/workload.sh"], env=os.environ | server, start_new_session=True
    )
    try:
        with cluster.connect("app") as source, cluster.connect("analytics") as target:
            listen = (sys.executable, "-m", "replicator", "listen", "--until-caught-up")
            changed = "select count(*) from message where body like '%!'"
            wait_until(lambda: source.execute(changed).fetchone() != (0,), what="the workload changes messages")
            for _ in range(2):
                done = subprocess.run(
                    listen, cwd=tmp_path, env=os.environ | tool | {"PYTHONPATH": str(ROOT)}, capture_output=True,
                    text=True, timeout=60,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
            assert target.execute(changed).fetchone() != (0,)
            os.killpg(workload.pid, signal.SIGKILL)
            source.execute("select pg_drop_replication_slot('replicator_default')")
    finally:
        workload.kill()
        workload.wait()


# ----------------------------------------------------------------------------------------------- kubernetes


MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def read_manifests(*paths: Path) -> list[dict[str, Any]]:
    return [document for path in paths for document in YAML(typ="safe").load_all(path)]


@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_kubernetes_schemas_accept_every_manifest(version: str) -> None:
    run(find_tool("kubernetes-validate"), "--strict", "-k", version, *MANIFESTS)


def test_pods_run_as_the_image_s_user_with_no_right_and_no_key_to_the_cluster() -> None:
    (user,) = re.findall(r"^USER (\d+):", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    pods = [pod for document in read_manifests(*MANIFESTS) if (pod := find_pod(document))]
    assert len(pods) == 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (int(user), True)
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "limits" in container["resources"]


def find_pod(document: dict[str, Any]) -> Any:
    spec = document.get("spec", {})
    return spec.get("template", spec.get("jobTemplate", {}).get("spec", {}).get("template", {})).get("spec")


def test_pods_refer_to_what_the_example_makes() -> None:
    documents = read_manifests(*MANIFESTS)
    made = {(d["kind"], d["metadata"]["name"]) for d in documents if d["kind"] in ("ConfigMap", "Secret")}
    used = set()
    for pod in filter(None, map(find_pod, documents)):
        names = {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            used |= {("ConfigMap", volume["configMap"]["name"])} if "configMap" in volume else set()
            used |= {("Secret", volume["secret"]["secretName"])} if "secret" in volume else set()
        for container in pod["containers"]:
            used |= {("Secret", source["secretRef"]["name"]) for source in container["envFrom"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == names
    assert used == made


def test_the_settings_of_the_pods_are_settings_of_ours(tmp_path: Path, own_environment: pytest.MonkeyPatch) -> None:
    (config,) = [d for d in read_manifests(*MANIFESTS) if d["kind"] == "ConfigMap"]
    secrets = [d["stringData"] for d in read_manifests(*MANIFESTS) if d["kind"] == "Secret"]
    (tmp_path / "replicator.toml").write_text(config["data"]["replicator.toml"])
    for name, value in secrets[0].items():
        own_environment.setenv(name, value)
    for pod in filter(None, map(find_pod, read_manifests(*MANIFESTS))):
        for variable in pod["containers"][0]["env"]:
            if variable["name"] != "REPLICATOR_CONFIG":
                own_environment.setenv(variable["name"], variable["value"])
    settings = load_settings(cwd=tmp_path)
    assert (settings.serve.host, settings.data_dir) == ("0.0.0.0", Path("/tmp/replicator"))  # noqa: S104
