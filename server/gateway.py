"""The coordinator's door: an nginx configuration that lets hospitals reach the fleet API of the installed Flower, and nothing else.

Flower's SuperLink has one port for nodes, control and runtime, and its control API knows no authentication: it stays on loopback. nginx
stands in front, ends the hospitals' TLS, asks for client certificates, and passes on requests whose line is exactly one of those below.
"""

from __future__ import annotations

from pathlib import Path

from server.certificates import require_hosts
from server.home import Home
from server.joining import write_revocation_list
from shared.errors import InputError, ProcessError
from shared.nginx import BODIES, TLS, GatewayFolder, listening, quoted, whole_file
from shared.private_file import write_private
from shared.release import versions

#: What a node that was registered by its coordinator calls.
NODE_CALLS = frozenset({
    "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab",
    "push-object", "pull-object", "confirm-message-received",
})  # fmt: skip

#: Calls by which a node would admit or remove itself: known, and refused.
SELF_REGISTRATION = frozenset({"register-node", "unregister-node"})

_PREFIX = "/v1/fleet/"


def fleet_paths() -> tuple[str, ...]:
    """The paths that hospitals may post to, from the router of the installed flwr.

    Raises ProcessError where that router offers other paths than this release knows: a person decides about each of them first.
    """
    try:
        from fastapi.routing import APIRoute
        from flwr.superlink.routers.fleet.router import router

        offered = {
            (route.path, *sorted(route.methods or ()))
            if isinstance(route, APIRoute)
            else (str(route), "by other means")
            for route in router.routes
        }
    except (ImportError, AttributeError) as problem:
        raise ProcessError(f"the fleet router of flwr {versions()['flwr']} is not as expected: {problem}") from None
    known = {(_PREFIX + name, "POST") for name in NODE_CALLS | SELF_REGISTRATION}
    if offered != known:
        told = "; ".join(
            f"{title} {', '.join(' '.join(reversed(route)) for route in sorted(routes))}"
            for title, routes in (("new:", offered - known), ("missing:", known - offered))
            if routes
        )
        raise ProcessError(
            f"the fleet API of flwr {versions()['flwr']} is not the one that this release was made for: {told}"
        )
    return tuple(sorted(_PREFIX + name for name in NODE_CALLS))


def gateway_folder(home: Home) -> GatewayFolder:
    return GatewayFolder(home.path.absolute() / "gateway")


def write_gateway(
    home: Home,
    *,
    listen: str = "443",
    out: Path | None = None,
    require_certificates: bool = True,
    included: bool = False,
) -> Path:
    """Write the configuration, by default to `gateway/nginx.conf` in the coordinator's folder; returns its path.

    `listen` is PORT or ADDRESS:PORT. `require_certificates`: refuse whoever has no client certificate of this coordinator; otherwise only
    those who present one that is not good. `included`: only what belongs into the http block of an nginx that serves other things too.
    Raises InputError where the SuperLink's port is not fixed, ProcessError where flwr is not as expected, StorageError.
    """
    folder = gateway_folder(home)
    text = _http_block(home, listen, require_certificates)
    heading = (
        f"# Written by `consilium-server gateway` for flwr {versions()['flwr']}: write it again after every update of Consilium.\n"
        f"# Whatever is changed here by hand is lost then."
    )
    folder.make()
    if not (home.keys / "crl.pem").exists():  # nginx does not start without it; admitting and revoking write it anew
        write_revocation_list(home)
    text = f"{heading}\n{text}" if included else whole_file(folder, text, heading=heading)
    target = out or folder.configuration
    write_private(target, text.encode())
    return target


def _http_block(home: Home, listen: str, require_certificates: bool) -> str:
    record = home.record()
    if record.port is None:
        raise InputError(
            f'{home.path / "coordinator.json"}: the SuperLink\'s port is not fixed, so nginx would not know where it is; set "port" to a '
            "free port of this machine, for instance 9092"
        )
    paths = fleet_paths()
    listens = "\n    ".join(listening(listen))
    locations = "\n\n".join(_location(path) for path in paths)
    return f"""
limit_req_zone $binary_remote_addr zone=consilium_requests:1m rate=100r/s;
limit_conn_zone $binary_remote_addr zone=consilium_connections:1m;

# Nodes ask several times a second: what went well is not noted. Bodies and headers never are.
map $status $consilium_noted {{
    ~^2 0;
    default 1;
}}
log_format consilium_refused escape=json
    '{{"time":"$time_iso8601","from":"$remote_addr","certificate":"$ssl_client_s_dn","verified":"$ssl_client_verify",'
    '"method":"$request_method","path":"$uri","status":$status,"bytes":$request_length,"seconds":$request_time}}';

upstream consilium_superlink {{
    server 127.0.0.1:{record.port};
    keepalive 16;
    keepalive_timeout 3s;  # the SuperLink closes a connection after 5 s without a request
}}

server {{
    {listens}
    server_name {" ".join(_server_name(host) for host in record.hosts)};
    server_tokens off;
    access_log {quoted(gateway_folder(home).path / "refused.log")} consilium_refused if=$consilium_noted;

    ssl_certificate {quoted(home.certificates.certificate)};
    ssl_certificate_key {quoted(home.certificates.key)};
    {TLS.replace(chr(10), chr(10) + "    ")}

    # Certificates that the coordinator issued at admission, less those it revoked.
    ssl_client_certificate {quoted(home.certificates.ca)};
    ssl_crl {quoted(home.keys / "crl.pem")};
    ssl_verify_client {"on" if require_certificates else "optional"};
    ssl_verify_depth 1;
    error_page 495 496 = @certificate;

    {BODIES.replace(chr(10), chr(10) + "    ")}
    client_header_timeout 15s;
    client_body_timeout 60s;
    send_timeout 60s;
    keepalive_timeout 75s;
    keepalive_requests 10000;
    limit_req zone=consilium_requests burst=400 nodelay;
    limit_conn consilium_connections 64;
    merge_slashes off;
    default_type application/json;

    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host localhost;
    proxy_connect_timeout 5s;
    proxy_send_timeout 60s;
    proxy_read_timeout 120s;
    proxy_ssl_verify on;
    proxy_ssl_verify_depth 1;
    proxy_ssl_trusted_certificate {quoted(home.certificates.ca)};
    proxy_ssl_server_name on;
    proxy_ssl_name localhost;
    proxy_ssl_protocols TLSv1.2 TLSv1.3;

    location / {{
        return 403 '{{"detail":"not offered here"}}';
    }}

    # 401 stops a node; at 403 it would go on asking, since Flower says so of a run that is over.
    location @certificate {{
        return 401 '{{"detail":"client certificate refused","reason":"$ssl_client_verify"}}';
    }}

{_indented(locations)}
}}
"""


def _location(path: str) -> str:
    """One path: its request line must be exactly this, and exactly this is what the SuperLink gets."""
    return f"""location = {path} {{
    if ($request_method != POST) {{ return 403 '{{"detail":"not offered here"}}'; }}
    if ($request_uri != {path}) {{ return 403 '{{"detail":"not offered here"}}'; }}
    proxy_pass https://consilium_superlink{path};
}}"""


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.split("\n"))


def _server_name(host: str) -> str:
    require_hosts([host])
    return f"[{host}]" if ":" in host else host
