"""What can go wrong between a client and a server.

    FrontrowError
    ├── InvalidRequest      an argument is wrong (also a ValueError); sending it again will not help
    ├── ServerUnavailable   nothing answers at the address
    ├── DeadlineExceeded    no answer within the timeout
    ├── Overloaded          the server refused for want of capacity; a later call may pass, one at once adds to it
    ├── ModelNotFound       the server does not hold that model, or not that version of it
    ├── SchemaMismatch      the server's bundle was made with other fields than the client's schema
    └── ServerFault         the server failed, or answered something that is not a Frontrow answer

Every message names the value or the address, and what to do about it.
"""

from __future__ import annotations


class FrontrowError(Exception):
    """The base of everything that a client raises on purpose."""


class InvalidRequest(FrontrowError, ValueError):
    """An argument is wrong. Found before sending, or by the server, whose words are then the message."""


class ServerUnavailable(FrontrowError):
    """Nothing answers at the address, or the connection broke."""


class DeadlineExceeded(FrontrowError):
    """No answer within the timeout."""


class Overloaded(FrontrowError):
    """The server refused for want of capacity, at once or after the request had waited too long. The client did not
    repeat it, which would add to the load; a later call may pass."""


class ModelNotFound(FrontrowError):
    """The server does not hold that model, or not that version of it."""


class SchemaMismatch(FrontrowError):
    """The server's bundle was made with other fields, or another wire contract, than the client's schema."""


class ServerFault(FrontrowError):
    """The server failed, or answered something that is not a Frontrow answer."""
