"""The few exceptions a user can meet. Each message says what was given, what was expected and what to do."""


class DynextError(Exception):
    """Base of every error that dynext raises on purpose."""


class SplitError(DynextError):
    """A model cannot be cut into stages the way it was asked."""


class PolicyError(DynextError):
    """A policy, a table or a budget does not fit the net or makes no sense."""


class SourceError(DynextError):
    """Samples are missing, malformed or of another shape than the net expects."""


class ModelError(DynextError):
    """A model reference or a checkpoint cannot be opened, or does not fit."""


class ArtifactError(DynextError):
    """A saved dynamic net is missing, truncated, mismatched or from the future."""


class DiskError(ArtifactError):
    """A disk is full, or one may not write there."""


class FitError(DynextError):
    """Training cannot start, go on or be resumed."""


class PlanError(DynextError):
    """A plan of what to remove does not fit the net, or would leave it inconsistent."""


class PluginError(DynextError):
    """A part that another package brings cannot be imported, or is not what its place asks for."""


def line(error: Exception) -> str:
    """An error as one line, for the message of a DynextError around it."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
