"""The way to the coordinator: name, proxy, TCP, TLS, clock, and whether it takes this node's key."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cryptography import x509

from client.doctor.findings import Finding, Visit
from client.doctor.reach import ProxyRefusal, Shown, connect, context, presented
from client.doctor.signed_request import Answer, ask
from client.doctor.words import Words

#: Days before its end from which a certificate is worth a warning.
SOON_DAYS = 30
#: A signed request may be 300 s old, and 5 s young, for the clock of the coordinator's SuperLink (Flower 1.41).
BEHIND_S, AHEAD_S = 300.0, 5.0
#: A clock that is kept by NTP is far closer than this; the Date header counts whole seconds.
UNKEPT_S = 3.0

_NO_JOIN = "not joined yet"
_EXPIRED, _NOT_YET, _NAME, _ADDRESS = 10, 9, 62, 64


NAME = Words("dns", "Name of the coordinator")
PROXY = Words("proxy", "Proxy")
TCP = Words("tcp", "Connection to the coordinator")
TLS = Words("tls", "Certificate of the coordinator")
CLIENT = Words("client-certificate", "Certificate of this hospital")
CLOCK = Words("clock", "Clock")
NODE_KEY = Words("node-key", "Admission of this node")


def check_proxy(visit: Visit) -> Finding:
    if visit.address is None:
        return PROXY.skipped(_NO_JOIN)
    host, _ = visit.address
    if visit.uses_gateway:
        told = "the hospital's own nginx reaches the coordinator directly; it can't use a proxy"
        for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            if visit.environment.get(variable):
                told += f", so {variable} is not used for the coordinator"
        return PROXY.ok(told)
    proxy = visit.proxy
    if proxy is None:
        return PROXY.ok(f"none for {host}: the node connects directly")
    if not proxy.host:
        return PROXY.fault(
            f"{proxy.variable} is set, but is no address of a proxy",
            f"Set {proxy.variable} to http://HOST:PORT, or unset it.",
        )
    if proxy.scheme != "http":
        return PROXY.fault(
            f"{proxy.variable} names a proxy of the kind {proxy.scheme}, which this node is not tested with",
            "Use an http:// proxy that allows CONNECT, or let the firewall pass the coordinator's address and except it with NO_PROXY.",
        )
    return PROXY.ok(
        f"{proxy.shown} (from {proxy.variable}); a system service needs it in the file `environment` of the site's folder"
    )


def check_name(visit: Visit) -> Finding:
    if visit.address is None:
        return NAME.skipped(_NO_JOIN)
    host, port = visit.address
    try:
        found = sorted({str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except OSError as problem:
        reason = problem.strerror or str(problem)
        if visit.proxy is not None:
            return NAME.ok(f"{host} is not known on this machine ({reason}); the proxy looks it up")
        visit.failed.append(NAME.title)
        return NAME.fault(
            f"{host} can't be resolved: {reason}",
            f"Let the hospital's DNS server resolve {host}, or ask the coordinator whether its name has changed.",
        )
    return NAME.ok(f"{host} is {', '.join(found)}")


def check_tcp(visit: Visit) -> Finding:
    if (blocked := _blocked(visit, TCP)) is not None:
        return blocked
    assert visit.address is not None
    host, port = visit.address
    proxy = visit.proxy
    way = f"{host}:{port}" + (f" through the proxy {proxy.shown}" if proxy is not None else "")
    try:
        connect(host, port, proxy, visit.timeout_s).close()
    except ProxyRefusal as problem:
        visit.failed.append(TCP.title)
        remedy = (
            "Give the proxy's account in the variable, as http://NAME:PASSWORD@HOST:PORT."
            if " 407" in str(problem)
            else f"Let the proxy allow CONNECT to {host}:{port}."
        )
        return TCP.fault(f"the proxy refuses to connect to {host}:{port}: {problem}", remedy)
    except OSError as problem:
        visit.failed.append(TCP.title)
        reason = "no answer" if isinstance(problem, TimeoutError) else problem.strerror or str(problem)
        return TCP.fault(
            f"{way} can't be reached: {reason}",
            f"Let the firewall pass outbound TCP to {host} port {port}; if it does, ask the coordinator whether its gateway is up.",
        )
    return TCP.ok(f"{way} is open")


def check_tls(visit: Visit) -> Finding:
    if (blocked := _blocked(visit, TLS)) is not None:
        return blocked
    assert visit.address is not None
    host, port = visit.address
    try:
        tls = context(visit.site.ca)
    except (OSError, ValueError):
        visit.failed.append(TLS.title)
        return TLS.fault(
            "keys/ca.crt is missing or no certificate",
            "Join again with the admission: consilium-site join FOLDER ADMISSION.",
        )
    try:
        with (
            connect(host, port, visit.proxy, visit.timeout_s) as raw,
            tls.wrap_socket(raw, server_hostname=host) as wrapped,
        ):
            found, version = wrapped.getpeercert(binary_form=True), wrapped.version()
    except ssl.SSLCertVerificationError as problem:
        visit.failed.append(TLS.title)
        return _untrusted(problem, presented(host, port, visit.proxy, visit.timeout_s), host)
    except (OSError, ValueError) as problem:
        visit.failed.append(TLS.title)
        reason = problem.reason if isinstance(problem, ssl.SSLError) and problem.reason else str(problem)
        return TLS.fault(
            f"no TLS connection: {reason}",
            "Ask the coordinator whether something else answers at this address, and the firewall's keepers whether they cut TLS off.",
        )
    shown = Shown.of(x509.load_der_x509_certificate(found or b""))
    told = f"{version}, issued by {shown.issuer}, valid for {host} until {shown.ends:%Y-%m-%d} ({_days(shown.days_left)} left)"
    if shown.days_left < SOON_DAYS:
        return TLS.warning(told, "Remind the coordinator to renew it: consilium-server renew; nothing is needed here.")
    return TLS.ok(told)


def _untrusted(problem: ssl.SSLCertVerificationError, shown: Shown | None, host: str) -> Finding:
    code = problem.verify_code
    if code == _EXPIRED and shown is not None:
        return TLS.fault(
            f"the coordinator's certificate ended on {shown.ends:%Y-%m-%d %H:%M} UTC",
            "Ask the coordinator to renew it (consilium-server renew), and compare this machine's clock.",
        )
    if code == _NOT_YET and shown is not None:
        return TLS.fault(
            f"the coordinator's certificate begins on {shown.begins:%Y-%m-%d %H:%M} UTC, but here it is {datetime.now(UTC):%Y-%m-%d %H:%M}",
            "Correct this machine's clock.",
        )
    if code in (_NAME, _ADDRESS) and shown is not None:
        return TLS.fault(
            f"the certificate is for {', '.join(shown.names) or shown.subject}, but not for {host}",
            f"Ask the coordinator to renew its certificate for {host}: consilium-server renew with --host {host}.",
        )
    issuer = f"; it was issued by {shown.issuer} for {shown.subject}" if shown is not None else ""
    return TLS.fault(
        f"the certificate that is shown is not of the coordinator's authority (keys/ca.crt): {problem.verify_message}{issuer}",
        f"If a firewall inspects TLS, let it pass {host} untouched; if not, compare keys/ca.crt with the coordinator by telephone.",
    )


def check_client_certificate(visit: Visit) -> Finding:
    certificate, key = visit.site.tls_certificate, visit.site.tls_key
    if not certificate.exists():
        return CLIENT.skipped(_NO_JOIN if visit.coordinator is None else "the coordinator gave none")
    again = "Ask for a new one: consilium-site request, consilium-server admit, consilium-site join."
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        probe.load_cert_chain(certificate, key)
    except (OSError, ValueError) as problem:
        reason = problem.reason if isinstance(problem, ssl.SSLError) else "a file is missing or damaged"
        return CLIENT.fault(f"keys/tls.pem and keys/tls.key can't be used together: {reason}", again)
    shown = Shown.of(loaded)
    told = f"for {shown.subject}, until {shown.ends:%Y-%m-%d} ({_days(shown.days_left)} left)"
    if shown.ends < datetime.now(UTC):
        return CLIENT.fault(f"ended on {shown.ends:%Y-%m-%d}", again)
    if shown.days_left < SOON_DAYS:
        return CLIENT.warning(told, again)
    return CLIENT.ok(told)


def check_node_key(visit: Visit) -> Finding:
    """A request that is signed with the node key and that the SuperLink must refuse for another reason: it changes nothing there."""
    if (blocked := _blocked(visit, NODE_KEY)) is not None:
        return blocked
    assert visit.address is not None
    started = datetime.now(UTC)
    try:
        answer = ask(
            visit.site,
            *visit.address,
            proxy=visit.proxy,
            timeout_s=visit.timeout_s,
            show_certificate=visit.uses_gateway,
        )
    except (OSError, ValueError) as problem:
        visit.failed.append(NODE_KEY.title)
        return NODE_KEY.fault(f"no answer to a request: {problem}", "Ask the coordinator whether its gateway is up.")
    visit.ahead_s = _ahead(answer, started)
    return _admission(visit, answer)


def _admission(visit: Visit, answer: Answer) -> Finding:
    if answer.accepted:
        return NODE_KEY.ok("the coordinator knows this node's key and takes its signature")
    if answer.certificate_refused is not None:
        return _certificate_refused(visit, answer.certificate_refused)
    if answer.unknown:
        return NODE_KEY.fault(
            "the coordinator does not know this node's key: it was not admitted, or it has been revoked",
            "Ask the coordinator to look with `consilium-server sites FOLDER`; after a revocation join with new keys in a new folder.",
        )
    if answer.status == 401:
        return NODE_KEY.fault(
            "the coordinator does not take this node's signature"
            + (", most likely because the clocks differ" if _is_far(visit.ahead_s) else ""),
            "Correct this machine's clock."
            if _is_far(visit.ahead_s)
            else "Compare keys/node.pub with the request that was admitted.",
        )
    if answer.status in (502, 503, 504):
        return NODE_KEY.fault(
            f"the gateway answers, but the coordinator behind it does not (HTTP status {answer.status})",
            "Ask the coordinator to start it: consilium-server up. A node waits for it.",
        )
    if answer.status == 403:
        return NODE_KEY.fault(
            "the gateway does not offer what a node calls",
            "Ask the coordinator to write it again: consilium-server gateway.",
        )
    return NODE_KEY.fault(
        f"what answers there is no coordinator (HTTP status {answer.status})",
        "Ask the coordinator whether its address is still the one in the admission.",
    )


def _certificate_refused(visit: Visit, reason: str) -> Finding:
    if "revoked" in reason:
        return NODE_KEY.fault(
            "the coordinator has revoked this hospital",
            "Ask the coordinator why; to come back, join again with new keys in a new folder.",
        )
    if reason == "NONE" and not visit.uses_gateway:
        return NODE_KEY.fault(
            "the coordinator asks for a client certificate, which a node can't show by itself",
            "Write the hospital's own gateway, which shows it, and start the node through it: consilium-site gateway FOLDER.",
        )
    if reason == "NONE":
        return NODE_KEY.fault(
            "the coordinator asks for a client certificate, and there is none here",
            "Join again with the newest admission: consilium-site join FOLDER ADMISSION.",
        )
    return NODE_KEY.fault(
        f"the coordinator refuses this hospital's client certificate: {reason.removeprefix('FAILED:')}",
        "Ask for a new one: consilium-site request, consilium-server admit, consilium-site join.",
    )


def check_clock(visit: Visit) -> Finding:
    if visit.ahead_s is None:
        return CLOCK.skipped("no answer of the coordinator to compare with")
    seconds = abs(visit.ahead_s)
    told = f"this machine's clock is {seconds:.0f} s {'ahead of' if visit.ahead_s > 0 else 'behind'} the coordinator's"
    if _is_far(visit.ahead_s):
        return CLOCK.fault(
            f"{told}; a node may be {AHEAD_S:.0f} s ahead and {BEHIND_S:.0f} s behind",
            "Let this machine keep its time by NTP (timedatectl set-ntp true); if it does, tell the coordinator.",
        )
    if seconds > UNKEPT_S:
        return CLOCK.warning(told, "Let this machine keep its time by NTP (timedatectl set-ntp true).")
    return CLOCK.ok("agrees with the coordinator's to within the second or two that can be told")


def _is_far(ahead_s: float | None) -> bool:
    """The Date header may be a second old already."""
    return ahead_s is not None and not -BEHIND_S <= ahead_s <= AHEAD_S + 1


def _ahead(answer: Answer, started: datetime) -> float | None:
    """This clock less the coordinator's, at the middle of the request; the Date header is cut to whole seconds."""
    if answer.date is None:
        return None
    try:
        theirs = parsedate_to_datetime(answer.date)
        here = started + (answer.received - started) / 2
        return (here - theirs).total_seconds() - 0.5
    except (TypeError, ValueError):
        return None


def _blocked(visit: Visit, words: Words) -> Finding | None:
    if visit.address is None:
        return words.skipped(_NO_JOIN)
    if visit.failed:
        return words.skipped(f"not looked at, because of: {visit.failed[0]}")
    return None


def _days(number: int) -> str:
    return f"{number} day" if number == 1 else f"{number} days"


#: In the order in which they build on each other.
NETWORK: tuple[tuple[Words, Callable[[Visit], Finding]], ...] = (
    (PROXY, check_proxy),
    (NAME, check_name),
    (TCP, check_tcp),
    (TLS, check_tls),
    (CLIENT, check_client_certificate),
    (NODE_KEY, check_node_key),
    (CLOCK, check_clock),
)
