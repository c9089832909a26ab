"""Connect to the servers that the command line names, or start one."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from livematch.errors import LocalServerError, UnavailableError

if TYPE_CHECKING:
    from livematch.serving.client import Client


@contextmanager
def connect(options: argparse.Namespace) -> Iterator["Client"]:
    """Context manager: yield a client of the servers at `--server`, or of one that is started on `--repository`."""
    from livematch.local.local_server import LocalServer
    from livematch.serving.client import Client
    from livematch.serving.settings import Tls

    settings: dict[str, Any] = {
        "max_tries": options.max_tries,
        "crop_scale": options.crop_scale,
        "priority": "live" if options.command == "watch" else "batch",
    }
    if options.repository is None:
        tls = Tls(root_certificates=options.tls_ca, certificate_chain=options.tls_cert, private_key=options.tls_key)
        settings |= {"access_key": options.key, "tls": None if tls == Tls() else tls}
        with Client(options.server, **settings, shared_memory=options.shared_memory) as client:
            yield client
        return
    with LocalServer(options.repository) as server, Client(server.url, **settings, shared_memory=True) as client:
        server.on_exit(client.close)  # otherwise the client would wait for the server to come back
        try:
            yield client
        except UnavailableError as error:
            try:
                server.check()
            except LocalServerError as reason:
                raise LocalServerError(f"{reason}; {error}") from error
            raise
