"""What users can do something about, as opposed to what the program did wrong."""


class UserError(ValueError):
    """A mistake in the input. The command prints the message on one line and exits with status 2."""


class TrainingDiverged(RuntimeError):
    """A loss became infinite or not a number. A search goes on without the trial; a single training ends so."""
