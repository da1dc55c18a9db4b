"""Configuration files for nginx that run from one folder, with no right that their owner does not have; and nginx's own check of them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InputError, NotInstalledError, ProcessError, StorageError

#: Where distributions put it; /usr/sbin is in no ordinary account's PATH.
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")

INSTALLING = "on Debian and Ubuntu: apt install nginx-light; elsewhere the package is called nginx"


@dataclass(frozen=True, slots=True)
class GatewayFolder:
    """What one nginx writes: configuration, process id, logs, and the folders that it wants for temporary files."""

    path: Path

    @property
    def configuration(self) -> Path:
        return self.path / "nginx.conf"

    @property
    def process_id(self) -> Path:
        return self.path / "nginx.pid"

    def make(self) -> None:
        """Raises StorageError."""
        try:
            (self.path / "tmp").mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as problem:
            raise StorageError(f"{self.path}: can't be made: {problem.strerror or problem}") from None

    def command(self, configuration: Path | None = None) -> list[str]:
        """nginx in the foreground, as a service or a test runs it. Raises NotInstalledError."""
        file = configuration or self.configuration
        return [find_nginx(), "-c", str(file), "-p", str(self.path), "-g", "daemon off;"]

    def reload(self) -> bool:
        """Let a running nginx read its files again: new certificates, a new revocation list. False where none runs."""
        try:
            number = int(self.process_id.read_text())
            if "nginx" not in Path(f"/proc/{number}/cmdline").read_text():
                return False  # an old file, and the number is somebody else's by now
            os.kill(number, signal.SIGHUP)
        except (OSError, ValueError):
            return False
        return True


def find_nginx() -> str:
    """Path of the program. Raises NotInstalledError."""
    found = shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(_PLACES))
    if found is None:
        raise NotInstalledError(f"nginx is not installed here ({INSTALLING})")
    return found


def check_configuration(folder: GatewayFolder, configuration: Path) -> str:
    """What `nginx -t` says of a file that it finds good. Raises NotInstalledError without nginx, ProcessError with its words."""
    command = [find_nginx(), "-t", "-c", str(configuration), "-p", str(folder.path)]
    tried = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    said = tried.stderr.strip()
    if tried.returncode != 0:
        raise ProcessError(f"nginx finds fault with {configuration}: {said}")
    return said


def whole_file(folder: GatewayFolder, http: str, *, heading: str) -> str:
    """A configuration that stands alone: `http` is what belongs into its http block."""
    temporary = "\n".join(
        f"    {kind}_temp_path {quoted(folder.path / 'tmp' / kind)};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""{heading}
{_user(folder)}worker_processes 2;
worker_shutdown_timeout 30s;
pid {quoted(folder.process_id)};
lock_file {quoted(folder.path / "nginx.lock")};
error_log {quoted(folder.path / "error.log")} warn;

events {{
    worker_connections 1024;
}}

http {{
{temporary}
    access_log off;

{_indented(http)}
}}
"""


def _user(folder: GatewayFolder) -> str:
    """A root's nginx works as another account, which could not enter the folder: it works as the folder's owner."""
    if os.geteuid() != 0:
        return ""
    owner = folder.path.parent.stat().st_uid
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        return ""
    return f"user {name};\n"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.strip("\n").split("\n"))


def quoted(path: Path) -> str:
    """A path as nginx reads it back. Raises InputError where it holds signs that nginx gives a meaning to."""
    text = str(path.absolute())
    if any(sign in text for sign in '"$\\\n\r{};'):
        raise InputError(
            f"{text!r}: nginx can't be given a path with quotes, backslashes, $, braces, ';' or line breaks"
        )
    return f'"{text}"'


def listening(listen: str) -> tuple[str, ...]:
    """The `listen` lines for PORT (all addresses) or ADDRESS:PORT. Raises InputError."""
    address, _, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise InputError(f"--listen: expected PORT or ADDRESS:PORT, but got '{listen}'")
    if address:
        if any(sign in address for sign in " ;{}\"'$\\\n"):
            raise InputError(f"--listen: expected PORT or ADDRESS:PORT, but got '{listen}'")
        return (f"listen {address}:{port} ssl;",)
    version_6 = Path("/proc/net/if_inet6")
    return (f"listen {port} ssl;", *([f"listen [::]:{port} ssl;"] if version_6.exists() else []))


#: TLS as both gateways offer it. A session that is resumed is not looked up in the revocation list, so none is.
TLS = """\
ssl_protocols TLSv1.2 TLSv1.3;
ssl_ciphers ECDHE+AESGCM:ECDHE+CHACHA20;
ssl_session_cache off;
ssl_session_tickets off;"""

#: Bodies stay in memory: a piece of a message is 5.2 MB at most, nginx's default is 1 MB and a file.
BODIES = """\
client_max_body_size 8m;
client_body_buffer_size 8m;
proxy_max_temp_file_size 0;"""
