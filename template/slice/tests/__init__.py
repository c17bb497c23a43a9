"""Tests of this slice; they run with this slice alone."""
