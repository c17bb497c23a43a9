"""Which version of the service this is."""

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    """The version of the service that is installed; '' if it runs from a bare folder."""
    try:
        return version(__package__.partition(".")[0].replace("_", "-"))
    except PackageNotFoundError:
        return ""
