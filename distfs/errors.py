"""Every error distfs raises on purpose, classified by what the caller may do about it.

Low-level exceptions (``OSError``, a driver's own) are translated into these once, at the socket,
the file or the driver; everything above tells them apart by class, never by text. Each class
carries the HTTP status it becomes at the edge and the ``kind`` it is called by on the wire between
services and nodes. The message is one line a user can act on: what happened, then the remedy. Where it names what
is no client's business, such as the addresses of nodes, there is another for clients.
"""

from __future__ import annotations


class DistfsError(Exception):
    """Root of the hierarchy: on its own it means a bug of ours."""

    status = 500
    kind = "internal"
    #: Seconds after which trying again may succeed; becomes ``Retry-After``.
    retry_after: int | None = None
    #: What a client is told instead of the message, which is for the log and for operators; None: the message.
    public: str | None = None

    def __init__(self, message: str = "", *, public: str | None = None) -> None:
        super().__init__(message)
        if public is not None:
            self.public = public

    @property
    def for_client(self) -> str:
        """One line."""
        return " ".join((self.public or str(self)).split())


class ConfigError(DistfsError):
    """A setting is wrong: the operator must change it. Commands print it and exit 1."""

    kind = "config"


class NotHome(ConfigError):
    """A data folder is no storage node's, or not the one it was: a disk that is not mounted, above all."""

    kind = "not_home"


# --- the caller must change the request ------------------------------------------------------


class Refused(DistfsError):
    """The request is malformed or not allowed as it stands."""

    status = 400
    kind = "refused"


class NodeForgotten(Refused):
    """An operator took this node off the list: waiting does not help."""

    kind = "node_forgotten"


class BodyCutShort(Refused):
    """The client's body ended before it was complete; nothing was stored."""

    kind = "body_cut_short"


class Misdirected(Refused):
    """The request is for a host that this service is not (RFC 9110, 15.5.20)."""

    status = 421
    kind = "misdirected"


class ForeignPage(Refused):
    """A page of somebody else, in a browser of here, asks for what only our own may."""

    status = 403
    kind = "foreign_page"


class TooLarge(Refused):
    """More bytes than a limit allows."""

    status = 413
    kind = "too_large"


class Unauthorized(Refused):
    """Who asks has shown no token, or none that is good."""

    status = 401
    kind = "unauthorized"


class BadToken(Unauthorized):
    """A token was shown, and it is not good."""


class Forbidden(Refused):
    """The token is good, and not for this."""

    status = 403
    kind = "forbidden"


class OverQuota(Refused):
    """The owner's files would have more bytes than they may. Deleting some helps."""

    status = 507
    kind = "over_quota"


class TooMany(Refused):
    """More at once than this caller may; its own requests have to end first."""

    status = 429
    kind = "too_many"
    retry_after: int | None = 5


class TooManyWrong(TooMany):
    """Too many tokens, or links, from there were not good."""


class TooMuch(Refused):
    """The answer would have more bytes than the client said it wants: a precondition of its own (412)."""

    status = 412
    kind = "too_much"


class LengthRequired(Refused):
    """A body that may be missing altogether, or cut at its first byte: nothing says how long it is."""

    status = 411
    kind = "length_required"


class HeadersTooLarge(Refused):
    """The request line and headers together are over the limit."""

    status = 431
    kind = "headers_too_large"


class TargetTooLong(Refused):
    """The request's first line is over the limit."""

    status = 414
    kind = "target_too_long"


class RequestTooSlow(Refused):
    """The client took too long to send its request; unlike TooSlow, nothing of ours was late."""

    status = 408
    kind = "request_too_slow"


class ConditionFailed(Refused):
    """The client's own condition for the request does not hold (If-Match and its like)."""

    status = 412
    kind = "condition_failed"


class Encoded(Refused):
    """The body has a content coding that is not taken; the answer names those that are."""

    status = 415
    kind = "encoded"


class Unsupported(Refused):
    """A part of HTTP that distfs does not speak."""

    status = 501
    kind = "unsupported"


class NotFound(DistfsError):
    """No file or fragment has that id."""

    status = 404
    kind = "not_found"


# --- try elsewhere, or later ------------------------------------------------------------------


class Unavailable(DistfsError):
    """Something the request needs cannot be reached now; the same request may succeed later."""

    status = 503
    kind = "unavailable"
    retry_after: int | None = 5


class Away(Unavailable):
    """MetaDB is not there at this moment, as while it is restarted or another server takes over."""


class OtherSettings(Unavailable):
    """This process is configured with other times than the cluster agreed on: it must not act by them."""

    kind = "other_settings"


class Outdated(OtherSettings):
    """MetaDB takes no service as old as this one any more."""

    kind = "outdated"


class SchemaBehind(Unavailable):
    """MetaDB lacks a table or function that this version knows: it was not migrated, or is an older version's."""

    kind = "schema_behind"


class NodesLeft(DistfsError):
    """A commit names a node that is being drained or was forgotten since: nothing was committed. The same again
    would fare no better; with what that node keeps made anew elsewhere it may."""

    status = 503
    kind = "nodes_left"
    retry_after: int | None = 5


class NodeUnavailable(Unavailable):
    """One storage node failed to answer; another fragment or another node may serve."""

    kind = "node_unavailable"
    public = "a storage node cannot be reached: try again soon"


class TooSlow(Unavailable):
    """A deadline or a stall limit passed. The message names the phase and both figures."""

    status = 504
    kind = "too_slow"


class Stopping(Unavailable):
    """This service ends, and what it was doing with it: another one may serve the request, or the next."""

    kind = "stopping"


class Full(Unavailable):
    """No room for the bytes on this node (or, raised by the service, in the cluster)."""

    status = 507
    kind = "full"
    retry_after: int | None = None


class NewerFormat(Unavailable):
    """Written by a newer distfs, in a way that this one does not know. It is not damaged: who gets this neither
    repairs, puts aside nor deletes it. Another part may read it, or another fragment do; upgrading helps."""

    kind = "newer"
    retry_after: int | None = None


class NoZstd(NewerFormat):
    """Compressed, where there is no zstd. A service that has it reads it."""

    kind = "no_zstd"


# Clients read these three as they read Unavailable. They are no kinds of it: who looks for another node, waits for
# MetaDB or does without would do the wrong thing.


class Busy(DistfsError):
    """Everything of ours that the request needs is in use, as much as may be; nobody else is to blame."""

    status = 503
    kind = "busy"
    retry_after: int | None = 5


class Cancelled(DistfsError):
    """The request it was for has ended already, one way or another: nobody waits for what comes of it."""

    status = 503
    kind = "cancelled"
    retry_after: int | None = 5


class OutcomeUnknown(DistfsError):
    """MetaDB was lost while it committed and did not come back in time to be asked: the change may have happened.

    Whoever gets this must not remove the fragments it was about; the orphan sweep settles them later.
    """

    status = 503
    kind = "outcome_unknown"
    retry_after: int | None = 5


# --- the bytes are wrong ------------------------------------------------------------------------


class Corrupt(DistfsError):
    """Stored or received bytes fail their check. To a reader it is an erasure."""

    status = 502
    kind = "corrupt"


class ProtocolError(DistfsError):
    """The peer does not speak our wire format, version or cluster; never retried on that peer."""

    status = 502
    kind = "protocol"


class ClientGone(DistfsError):
    """The HTTP client hung up or stalled; there is nobody left to answer."""

    status = 499
    kind = "client_gone"
