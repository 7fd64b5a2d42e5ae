"""How a command fails: one line for the user and an exit status for a script."""

FAILED, USAGE, NO_MASTER = 1, 2, 3
SUPERSEDED = 4  # the release that was waited for was aborted, or another one has taken its place
INTERRUPTED = 128 + 2  # what a shell reports for a command that SIGINT ended


class Failure(Exception):
    """The command could not do what was asked. `main` prints the message and returns the status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status
