"Ports for servers that tests start."

import itertools
import os
import socket

# Below those that the system lends to whoever connects somewhere: between this look and the server's own nobody is given them.
BEGIN, MANY = 20_000, 12_000
COMING = itertools.count(os.getpid() * 97)  # Two processes of one run begin far from each other


def free_port() -> int:
    "One that nobody has, and that this process has not been told yet."
    while True:
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port := BEGIN + next(COMING) % MANY))
                return port
            except OSError:
                continue
