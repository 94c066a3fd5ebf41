"""The socket of the server."""

import socket

import pytest

from agenticrec_jax.serving.http.server import bound_socket
from agenticrec_jax.testing.errors import assert_names, refused


def test_a_socket_is_bound_to_its_address_alone():
    with bound_socket("127.0.0.1", 0) as bound:
        host, port = bound.getsockname()
        assert host == "127.0.0.1" and port > 0
        with pytest.raises(ConnectionRefusedError):  # until the server listens
            socket.create_connection((host, port))
        bound.listen()
        taken = refused(bound_socket, host, port)
    assert_names(taken, "--host", "--port", f"{host}:{port}", "free address")
    assert_names(refused(bound_socket, "192.0.2.1", 0), "192.0.2.1:0")
