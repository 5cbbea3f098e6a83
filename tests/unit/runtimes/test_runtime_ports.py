"""A taken port is found before a long run."""

import socket

import pytest

from lathe_runtimes.errors import InputError, PortTakenError
from lathe_runtimes.ports import check_port, free_port


def test_a_taken_port_names_port_flag_and_remedy():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            check_port(port, flag="--grpc-port")
    assert isinstance(caught.value, InputError)
    assert caught.value.where == "--grpc-port"
    assert str(port) in caught.value.found
    assert "--grpc-port" in caught.value.remedy


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(PortTakenError, match=r"192\.0\.2\.1"):
        check_port(free_port(), "192.0.2.1")


def test_free_ports_pass():
    check_port(0)
    check_port(free_port())
