"""systemd units for programs that run as an account without rights and see little of the machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.atomic_file import write_atomic
from shared.errors import InputError, NotInstalledError, ProcessError, StorageError

_NVIDIA = ("char-nvidia", "char-nvidia-frontend", "char-nvidia-uvm", "char-nvidia-caps", "char-nvidia-modeset")
_HOMES = ("/home", "/root", "/run/user")


@dataclass(frozen=True, slots=True)
class Unit:
    """One service. Paths are absolute; `command` is the program's path and its arguments."""

    description: str
    command: Sequence[str]
    user: str
    #: Home and working directory; it may be written to.
    folder: Path
    #: May be written to as well.
    writable: Sequence[Path] = ()
    #: Only read: named so that a disk that is mounted later is waited for, and so that one below a home is not hidden.
    readable: Sequence[Path] = ()
    after: Sequence[str] = ()
    reload_command: Sequence[str] = ()
    restart_s: int = 5
    stop_s: int = 60
    #: Why it is so many.
    why_restart_s: str = ""
    gpu: bool = False
    #: Imports PyTorch, which makes memory executable after writing it.
    torch: bool = False
    #: Listens below port 1024.
    low_port: bool = False

    def text(self) -> str:
        """The unit file. Raises InputError where a path or the account can't be written into one."""
        if not self.user or any(sign.isspace() or sign in "%:/\"'\\" for sign in self.user):
            raise InputError(f"--user: '{self.user}' can't be the name of an account")
        wanted = ["network-online.target", *self.after]
        below_home = any(_is_below(path, home) for path in self._paths() for home in _HOMES)
        below_tmp = any(_is_below(path, place) for path in self._paths() for place in ("/tmp", "/var/tmp"))
        capability = "CAP_NET_BIND_SERVICE" if self.low_port else ""
        lines = [
            "[Unit]",
            f"Description={_plain(self.description)}",
            f"Wants={' '.join(wanted)}",
            f"After={' '.join(wanted)}",
            f"RequiresMountsFor={_words(self._paths())}",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=exec",
            f"User={self.user}",
            f"ExecStart={_command(self.command)}",
            *([f"ExecReload={_command(self.reload_command)}"] if self.reload_command else []),
            f"WorkingDirectory={_plain(str(self.folder))}",
            f"Environment={_word(f'HOME={self.folder}')} PYTHONUNBUFFERED=1",
            "# Optional, one NAME=VALUE a line, for instance HTTPS_PROXY=http://proxy.example.org:3128",
            f"EnvironmentFile=-{_plain(str(self.folder / 'environment'))}",
            "Restart=always",
            *([f"# {self.why_restart_s}"] if self.why_restart_s else []),
            f"RestartSec={self.restart_s}",
            f"TimeoutStopSec={self.stop_s}",
            "# The main process is asked to end, and ends what it started; whatever is left then is killed.",
            "KillMode=mixed",
            "UMask=0077",
            "",
            "# What it may not do",
            "NoNewPrivileges=yes",
            f"CapabilityBoundingSet={capability}",
            f"AmbientCapabilities={capability}",
            "ProtectSystem=strict",
            f"ReadWritePaths={_words([self.folder, *self.writable])}",
            *(
                ["# Something it needs lies below a home; otherwise this would be: ProtectHome=yes"]
                if below_home
                else []
            ),
            f"ProtectHome={'read-only' if below_home else 'yes'}",
            *(["# Something it needs lies below /tmp; otherwise this would be: PrivateTmp=yes"] if below_tmp else []),
            f"PrivateTmp={'no' if below_tmp else 'yes'}",
            *self._devices(),
            "ProtectKernelTunables=yes",
            "ProtectKernelModules=yes",
            "ProtectKernelLogs=yes",
            "ProtectControlGroups=yes",
            "ProtectClock=yes",
            "ProtectHostname=yes",
            "ProtectProc=invisible",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
            "RestrictNamespaces=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "RemoveIPC=yes",
            "LockPersonality=yes",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service",
            "SystemCallFilter=~@privileged",
            "SystemCallErrorNumber=EPERM",
            *self._executable_memory(),
            "",
            "[Install]",
            "WantedBy=multi-user.target",
        ]
        return "\n".join(lines) + "\n"

    def _paths(self) -> list[Path]:
        return [self.folder, *self.writable, *self.readable, Path(self.command[0])]

    def _devices(self) -> list[str]:
        if not self.gpu:
            return ["PrivateDevices=yes"]
        return [
            "# The profile's device may be an NVIDIA GPU: its devices and no others. On the CPU this would be: PrivateDevices=yes",
            "PrivateDevices=no",
            "DevicePolicy=closed",
            *(f"DeviceAllow={device} rw" for device in _NVIDIA),
        ]

    def _executable_memory(self) -> list[str]:
        if not self.torch:
            return ["MemoryDenyWriteExecute=yes"]
        return [
            "# MemoryDenyWriteExecute=yes is left out: oneDNN, which computes PyTorch's convolutions on the CPU, writes its kernels while",
            "# the program runs; under it every convolution ends with 'could not create a primitive'.",
        ]


def verify(unit: Path) -> str:
    """What `systemd-analyze verify` says of a unit file: nothing, if it is good. Raises NotInstalledError, ProcessError with its words."""
    program = shutil.which("systemd-analyze")
    if program is None:
        raise NotInstalledError(
            "systemd-analyze is not installed here, so the unit can't be checked; it comes with systemd"
        )
    command = [program, "verify", "--man=no", str(unit)]
    tried = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    said = "\n".join(line for line in tried.stderr.splitlines() if str(unit) in line or unit.name in line)
    if tried.returncode != 0 or said:
        raise ProcessError(f"systemd finds fault with {unit}: {said or tried.stderr.strip()}")
    return said


def write_units(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write unit files by name; their paths. Raises StorageError."""
    written = []
    for name, text in texts.items():
        path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None
        write_atomic(path, text.encode(), mode=0o644)
        written.append(path)
    return written


def installation(units: Sequence[Path], folder: Path, user: str) -> str:
    """What a person with rights on the machine does with these unit files, line by line."""
    names = " ".join(unit.name for unit in units)
    account, home = shlex.quote(user), shlex.quote(str(folder.absolute()))
    return "\n".join(
        [
            "Written; to install, as root:",
            f"    id {account} || useradd --system --home-dir {home} --shell /usr/sbin/nologin {account}",
            f"    chown -R {account}: {home}",
            f"    cp {' '.join(shlex.quote(str(unit.absolute())) for unit in units)} /etc/systemd/system/",
            "    systemctl daemon-reload",
            f"    systemctl enable --now {names}",
            f"What they say: journalctl -u {units[0].name}",
        ]
    )


def has_systemd() -> bool:
    """Whether systemd runs this machine."""
    return Path("/run/systemd/system").is_dir()


def _is_below(path: Path, folder: str) -> bool:
    return path.is_relative_to(folder) or Path(os.path.realpath(path)).is_relative_to(folder)


def _command(words: Sequence[str]) -> str:
    """A program's path, which systemd takes as it is, and its arguments, in which it replaces variables."""
    if any(sign in words[0] for sign in "\"'\\$"):
        raise InputError(f"{words[0]}: systemd starts no program whose path holds quotes, backslashes or $")
    return " ".join([_word(words[0]), *(_word(word.replace("$", "$$")) for word in words[1:])])


def _words(words: Sequence[str | Path]) -> str:
    return " ".join(_word(str(word)) for word in words)


def _word(text: str) -> str:
    """One word as systemd reads it back."""
    plain = _plain(text)
    if not any(sign in plain for sign in " \t'\"\\;"):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(text: str) -> str:
    """A line's text, where systemd takes everything up to its end."""
    if any(ord(sign) < 32 for sign in text):
        raise InputError(
            f"{text!r}: can't be written into a systemd unit, since it holds a line break or another control character"
        )
    return text.replace("%", "%%")
