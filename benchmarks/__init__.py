"""Figures, side by side with others: `nox -s bench -- bus`, `http` or `scale`."""
