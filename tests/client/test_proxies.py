"""What the node adds to the environment's own proxies."""

from __future__ import annotations

from client.proxies import LOOPBACK, except_this_machine, proxy_for


def test_this_machine_is_never_reached_through_a_proxy_and_what_was_excepted_stays() -> None:
    for known in ("", "intranet.example.org", "localhost, intranet.example.org"):
        environment = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": known}
        except_this_machine(environment)
        assert [proxy_for(name, environment) for name in LOOPBACK] == [None, None]
        assert (proxy_for("intranet.example.org", environment) is None) == ("intranet" in known)
        assert proxy_for("fl.example.org", environment) is not None
        assert environment["NO_PROXY"] == environment["no_proxy"] and environment["NO_PROXY"].count("localhost") == 1


def test_the_lower_case_name_is_the_one_that_counts_and_stays() -> None:
    environment = {"no_proxy": "a.example.org", "NO_PROXY": "b.example.org", "https_proxy": "http://proxy:3128"}
    except_this_machine(environment)
    assert proxy_for("a.example.org", environment) is None and proxy_for("b.example.org", environment) is not None
