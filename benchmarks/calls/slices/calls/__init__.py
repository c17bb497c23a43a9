"""Calls that do nothing."""

NAME = "calls"
