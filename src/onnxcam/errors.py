"""Every error that onnxcam raises on purpose: what is wrong and where, then what to do.

The command line prints `error: message`, a blank line, `hint: hint`, and leaves with `exit_code`.
"""

from typing import ClassVar


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class OnnxCamError(Exception):
    """Base of all designed errors; `message` says what and where, `hint` what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n\nhint: {hint}" if hint else message)
        self.message = message
        self.hint = hint


class VerificationError(OnnxCamError):
    """A numerical check of a rewritten model against its original failed."""

    exit_code = 1


class UsageError(OnnxCamError):
    """An argument names something that does not exist or asks for something contradictory."""

    exit_code = 2


class ModelError(OnnxCamError):
    """The model file cannot be read, is not ONNX, or is not a valid model."""

    exit_code = 3


class UnsupportedError(OnnxCamError):
    """The model is valid, but an operator or a shape in it cannot be explained this way."""

    exit_code = 4


class UnsupportedOperatorError(UnsupportedError):
    """Operators between the target layer and the score have no derivative rule; all are named at once."""


class PictureError(OnnxCamError):
    """A picture cannot be read or is not a picture."""

    exit_code = 5


class OutputError(OnnxCamError):
    """A result cannot be written."""

    exit_code = 6
