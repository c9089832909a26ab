"""Every exception that livematch raises on purpose, all direct subclasses of LivematchError.

The command line prints the message of such an error as one line and exits with 2. A DecodeError or RequestError
concerns one image, video or frame; the others are still processed.
"""


class LivematchError(Exception):
    """Base of all exceptions of this package; the message is one line written for the user."""


class InputError(LivematchError, ValueError):
    """An argument is wrong; the message gives the value and says what to pass instead."""


class DecodeError(LivematchError):
    """An image or a video cannot be decoded; the message names the file and the reason."""


class RequestError(LivematchError):
    """The server refused one request because of its content; the message is the server's own."""


class UnavailableError(LivematchError):
    """The server does not answer or is overloaded, and all retries are used up."""


class ContractError(LivematchError):
    """The server's models have unexpected tensors, or are not the models it served at the beginning."""


class FeaturesError(LivematchError, ValueError):
    """A features file is damaged or unusable, or two of them do not belong together."""


class FileFormatError(LivematchError, ValueError):
    """A result, an annotation or a ground truth folder cannot be read; the message names the file."""


class LocalServerError(LivematchError):
    """A local server did not start or ended unexpectedly; the message says why and quotes its log."""


def describe_error(error: Exception | str) -> str:
    """Return an error's message on one line; if it has none, the name of its type."""
    return " ".join(str(error).split()) or type(error).__name__
