"""The one way a stage tells its user of a mistake: a line that says what, where and the mend."""


class UserError(Exception):
    """A mistake of the user's, or a state only the user can mend. Printed as `error: ...`, exit status 2."""


class Interrupted(BaseException):
    """The run was asked to stop by a signal. No `except Exception` may take it for a fault."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_status = 128 + signal_number


def oneline(error: BaseException) -> str:
    """The first line of an exception's text, or its type's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
