"""What the user did wrong, as opposed to what the program did wrong."""


class UserError(ValueError):
    """A mistake in the input. The command prints the message on one line and exits with status 2."""
