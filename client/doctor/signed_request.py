"""One signed request to the fleet API that tells whether this node is admitted, and does nothing else.

It asks to activate the node with a heartbeat interval of 0, which no SuperLink allows. Flower 1.41 looks first at the signature (401), then
for the key (error 2004 where it knows none), then at the interval (error 2003), and only then would it change the node's state: so 2003
means admitted, and a node that is online does not notice. (`fleet_handlers.activate_node`, `routers/fleet/node_auth.py`.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.doctor.reach import context
from client.proxies import Proxy
from client.site_folder import SiteFolder

_PATH, _METHOD = "/v1/fleet/activate-node", "/flwr.proto.Fleet/ActivateNode"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `code` is Flower's, `certificate_refused` the gateway's reason, `date` the header."""

    status: int
    code: int | None
    certificate_refused: str | None
    date: str | None
    received: datetime

    @property
    def accepted(self) -> bool:
        from flwr.supercore.error import ApiErrorCode

        return self.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL

    @property
    def unknown(self) -> bool:
        from flwr.supercore.error import ApiErrorCode

        return self.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED


def ask(
    site: SiteFolder, host: str, port: int, *, proxy: Proxy | None, timeout_s: float, show_certificate: bool
) -> Answer:
    """Send it, with the hospital's client certificate as its own gateway does, or without one as a node does.

    Raises OSError or ValueError where no HTTP answer comes back.
    """
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supercore.protobuf.client import ProtobufRequestContext
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    private = serialization.load_ssh_private_key(site.node_key.read_bytes(), password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError("keys/node.key is of another kind than ECDSA")
    message = ActivateNodeRequest(public_key=public_key_to_bytes(private.public_key()), heartbeat_interval=0)
    files = (site.tls_certificate, site.tls_key)
    tls = context(site.ca, files if show_certificate and all(path.exists() for path in files) else None)
    name = f"[{host}]" if ":" in host else host
    try:
        with httpx.Client(
            verify=tls, timeout=timeout_s, proxy=proxy.url if proxy is not None else None, trust_env=False
        ) as client:
            request = client.build_request(
                "POST",
                f"https://{name}:{port}{_PATH}",
                content=message.SerializeToString(deterministic=True),
                headers={"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE},
            )
            signed = NodeAuthHttpInterceptor(private, private.public_key())
            response = signed.intercept(
                ProtobufRequestContext(_METHOD, message, request), lambda one: client.send(one.request)
            )
    except httpx.HTTPError as problem:
        raise OSError(str(problem) or type(problem).__name__) from None
    body = _json(response)
    code, detail = body.get("code"), body.get("detail")
    return Answer(
        status=response.status_code,
        code=code if isinstance(code, int) else None,
        certificate_refused=str(body.get("reason", "")) if detail == "client certificate refused" else None,
        date=response.headers.get("date"),
        received=datetime.now(UTC),
    )


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = json.loads(response.text[:65536])
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
