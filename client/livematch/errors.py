"""Everything livematch raises on purpose.

LivematchError              base: the command line prints it as one line and exits with 2
├── InputError              a wrong argument, also a ValueError
├── DecodeError             an image or a video that cannot be decoded; the other sources go on
├── RequestError            the server answered, and refused this one picture; the others go on
├── UnavailableError        the server does not answer, or is overloaded, after all retries
├── ContractError           the server's models have other tensors than this client expects, or were exchanged
├── FeaturesError           a features file that is damaged or cannot be used, or two that do not belong together
├── FileFormatError         a result, an annotation or a truth folder that cannot be read
└── LocalServerError             a local server that did not start or died
"""


class LivematchError(Exception):
    """Base of all exceptions of this package; its message is one line made for the user."""


class InputError(LivematchError, ValueError):
    """An argument is wrong; the message names the value."""


class DecodeError(LivematchError):
    """An image or a video cannot be decoded; the message names the file and the reason."""


class RequestError(LivematchError):
    """The server refused one request for its content; the message is the server's own."""


class UnavailableError(LivematchError):
    """The server does not answer or is overloaded, and all retries are used up."""


class ContractError(LivematchError):
    """The server's models have other tensors than this client expects, or are others than at the beginning."""


class FeaturesError(LivematchError, ValueError):
    """A features file is damaged or unusable, or two of them do not belong together."""


class FileFormatError(LivematchError):
    """A result, an annotation or a truth folder cannot be read; the message names the file."""


class LocalServerError(LivematchError):
    """A local server did not start or died; the message says why, with the end of its log."""
